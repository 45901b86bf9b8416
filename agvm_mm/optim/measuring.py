"""Optimizer wrappers that measure the gradients of their updates."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from agvm_mm.engine import backward_passes_left
from agvm_mm.estimators import ModuleStatistics, VarianceEstimator
from agvm_mm.method.modulator import MeasurementSchedule
from agvm_mm.method.noise_scale import NoiseAverages


@dataclass(frozen=True)
class Measurement:
    """Result of a measured update.

    Args:
        update: Number of the update, from 0.
        variances: Phi by module name; may be not finite.
        multipliers: mu by module name after this measurement; empty if none are
            applied.
        noise_scales: Noise scale in images of each module and of 'all', from averages
            up to this measurement; NaN if not resolved.
        accepted: Whether averages and multipliers follow it. Otherwise a variance is
            not finite or the anchor had no gradient.
    """

    update: int
    variances: dict[str, float]
    multipliers: dict[str, float]
    noise_scales: dict[str, float]
    accepted: bool


class MeasuringMixin:
    """Mixin that measures gradients in an optimizer wrapper of MMEngine.

    ``VarianceSyncHook`` attaches an estimator and a schedule when training begins.
    """

    loss_weight: float | None = None
    """Share of the next micro-batch in the loss of its update, set by a large-batch
    loop; None in MMEngine's own loops."""
    update_images: int | None = None
    """Images of the current update over all ranks, set by a large-batch loop; None in
    MMEngine's own loops."""

    def prepare_measuring(self) -> None:
        """Set the state of a wrapper that has measured nothing yet."""
        self.noise = NoiseAverages()
        self.num_updates = 0
        self.num_measurements = 0
        self.num_skipped_measurements = 0
        self._variances: dict[str, float] = {}
        self._estimator: VarianceEstimator | None = None
        self._schedule: MeasurementSchedule | None = None
        self._on_measurement: Callable[[Measurement], None] | None = None
        self._images_per_pass = 1
        self._in_update = False

    @property
    def variances(self) -> dict[str, float]:
        """Last measured variances (Phi), by module name."""
        return dict(self._variances)

    def attach(
        self,
        estimator: VarianceEstimator,
        schedule: MeasurementSchedule,
        on_measurement: Callable[[Measurement], None] | None = None,
        *,
        images_per_pass: int = 1,
    ) -> None:
        """Set how and when gradient variances are measured.

        Args:
            estimator: Built for this optimizer and the model.
            schedule: When to measure and to act.
            on_measurement: Called with each measurement, before the step. Defaults to
                None.
            images_per_pass: Images of one micro-batch over all ranks, for loops that do
                not set ``update_images``. Defaults to 1.
        """
        self._estimator = estimator
        self._schedule = schedule
        self._on_measurement = on_measurement
        self._images_per_pass = images_per_pass

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """See :meth:`OptimWrapper.optim_context`.

        Raises:
            RuntimeError: If nothing measures gradient variances for this wrapper.
        """
        self._check_attached()
        with super().optim_context(model):
            yield

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Back-propagate; the estimator sees the gradients of a measured update."""
        starts = False
        if not self._in_update:
            self._check_attached()
            self._in_update = True
            starts = self._schedule.is_measured(self.num_updates)
        if not starts and not self._estimator.measuring:
            super().backward(loss, **kwargs)
            return
        weight = self.loss_weight
        if weight is None:
            # The factor of MMEngine's own loops.
            weight = self.scale_loss(torch.ones((), dtype=torch.float64)).item()
        if starts:
            self._estimator.start(
                backward_passes_left(self),
                self._loss_scale(),
                images=self.update_images or self._images_per_pass / weight,
            )
        super().backward(loss, **kwargs)
        if self._estimator.measuring:
            self._estimator.record(weight)

    def step(self, **kwargs) -> None:
        """Finish the measurement, then step.

        The measurement comes before clipping, as in the paper.
        """
        self._check_attached()
        self.finish_measurement()
        super().step(**kwargs)
        self.num_updates += 1
        self._in_update = False

    def finish_measurement(self) -> None:
        """Finish the measurement if this update is measured.

        The gradients are complete afterwards. :meth:`step` does the same.
        """
        if not self._estimator.measuring:
            return
        statistics = self._estimator.finish()
        if statistics is not None:
            self._receive(statistics)

    def reset_update(self, *, dropped: bool) -> None:
        """Forget an update that was begun.

        Args:
            dropped: Whether it counts as an update.
        """
        self._in_update = False
        self.num_updates += int(dropped)
        if self._estimator is not None:
            self._estimator.cancel()

    def accept(self, variances: Mapping[str, float]) -> bool:
        """Return whether a measurement can be used.

        Args:
            variances: Phi by module name.
        """
        return all(map(math.isfinite, variances.values()))

    def applied_multipliers(self) -> dict[str, float]:
        """Return the multipliers (mu) that a measurement reports."""
        return {}

    def _receive(self, statistics: Mapping[str, ModuleStatistics]) -> None:
        variances = {name: each.variance for name, each in statistics.items()}
        accepted = self.accept(variances)
        if accepted:
            self._variances = variances
            self.num_measurements += 1
            self.noise.update(
                {name: each.signal_and_noise for name, each in statistics.items()},
                max(float(group['lr']) for group in self.optimizer.param_groups),
            )
        else:
            self.num_skipped_measurements += 1
        if self._on_measurement is not None:
            self._on_measurement(
                Measurement(
                    update=self.num_updates,
                    variances=variances,
                    multipliers=self.applied_multipliers(),
                    noise_scales=self.noise.noise_scales(),
                    accepted=accepted,
                )
            )

    def _check_attached(self) -> None:
        if self._estimator is None:
            raise RuntimeError(
                f'nothing measures gradient variances for {type(self).__name__}; add '
                "default_hooks=dict(agvm=dict(type='VarianceSyncHook')) to the config"
            )

    def _loss_scale(self) -> Tensor | None:
        """Return the factor of the gradients, on their device; None for 1."""
        scaler = getattr(self, 'loss_scaler', None)
        if scaler is None or not scaler.is_enabled():
            return None
        # Scaling a 1 avoids the device synchronization of get_scale().
        device = self.optimizer.param_groups[0]['params'][0].device
        return scaler.scale(torch.ones((), device=device))


class PlainMeasuringMixin(MeasuringMixin):
    """Mixin for a wrapper of MMEngine's own: it measures and changes nothing."""

    def state_dict(self) -> dict:
        """Return the optimizer's state and, under 'noise', the averages.

        A wrapper that does not measure ignores them.
        """
        return super().state_dict() | dict(noise=self.noise.state_dict())

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a saved state. Averages that it does not have start again."""
        state_dict = dict(state_dict)
        if 'noise' in state_dict:
            self.noise.load_state_dict(state_dict.pop('noise'))
        super().load_state_dict(state_dict)


def measure(optim_wrapper: OptimWrapper) -> None:
    """Make an optimizer wrapper of MMEngine measure, in place."""
    kind = type(optim_wrapper)
    optim_wrapper.__class__ = type(kind.__name__, (PlainMeasuringMixin, kind), {})
    optim_wrapper.prepare_measuring()
