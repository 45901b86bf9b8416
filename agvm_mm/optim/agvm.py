"""AGVM of one training: what it has measured, and the learning rates that follow."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import nn
from torch.optim import Optimizer

from agvm_mm.estimators import VarianceEstimator, build_preconditioner
from agvm_mm.method.modulator import MeasurementSchedule, Modulator
from agvm_mm.method.noise_scale import NoiseAverages
from agvm_mm.optim.split import scaled_learning_rates
from agvm_mm.sharding.state import (
    inner_groups,
    is_divided,
    parameters_of,
    stepping,
)


class MicroBatch(NamedTuple):
    """One backward pass of an update.

    Attributes:
        weight: Its share in the loss of the update; the shares add up to 1.
        passes: Backward passes of the update, as planned when it began.
        images: Images of the update over all ranks.
    """

    weight: float
    passes: int
    images: float


class Measurement(NamedTuple):
    """Result of a measured update.

    Attributes:
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


class AGVM:
    """Measures gradients during an update and scales learning rates at its step.

    An optimizer wrapper holds it. ``VarianceSyncHook`` makes it, from the model, and
    attaches an estimator and a schedule when the batch is known.

    Args:
        optimizer: Steps along the gradients.
        parameters: Parameters of the optimizer by module, see
            :func:`parameters_by_module`.
        modulator: Multipliers of the modules; None to measure only.
        over_ranks: Whether ranks average their gradients. They do so for those
            parameters only that are trained from the beginning; else all parameters of
            the modules may be. Defaults to False.

    Attributes:
        preconditioner: Turns a gradient into what the optimizer steps along.
        noise: Averages that noise scales follow from.
        variances: Last accepted Phi by module.
        num_updates: Updates so far.
        num_measurements: Accepted measurements so far.
        num_skipped_measurements: Others so far.

    Raises:
        TypeError: If the optimizer is none of which AGVM is defined, and there is a
            modulator.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Mapping[str, list[nn.Parameter]],
        modulator: Modulator | None = None,
        *,
        over_ranks: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self.parameters = dict(parameters)
        self.modulator = modulator
        self.preconditioner = build_preconditioner(
            stepping(optimizer), measures_only=modulator is None
        )
        if self.preconditioner.rescales:
            self.preconditioner.is_divided = is_divided(optimizer)
        self._module_of = {
            id(parameter): name for name, own in parameters.items() for parameter in own
        }
        self.noise = NoiseAverages()
        self.variances: dict[str, float] = {}
        self.num_updates = 0
        self.num_measurements = 0
        self.num_skipped_measurements = 0
        self._skipped: int | None = None
        self._known = set(trainable(parameters_of(optimizer)))
        if not over_ranks:
            self._known.update(self._module_of)
        self.estimator: VarianceEstimator | None = None
        self.schedule: MeasurementSchedule | None = None
        self.images_per_pass = 1
        self._on_measurement: Callable[[Measurement], None] | None = None

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
            images_per_pass: Images of one micro-batch over all ranks, for MMEngine's
                own loops. Defaults to 1.
        """
        self.estimator = estimator
        self.schedule = schedule
        self.images_per_pass = images_per_pass
        self._on_measurement = on_measurement

    @property
    def multipliers(self) -> dict[str, float]:
        """Multipliers (mu) of this update, by module name."""
        if self.modulator is None or not self.schedule.is_active(self.num_updates):
            return dict.fromkeys(self.parameters, 1.0)
        return dict(self.modulator.multipliers)

    @property
    def is_measured(self) -> bool:
        """Whether this update is measured."""
        skipped = self._skipped == self.num_updates
        return not skipped and self.schedule.is_measured(self.num_updates)

    def skip_measurement(self, reason: str) -> None:
        """Do not measure this update, for a reason that the log gives."""
        if self.is_measured:
            self._skipped = self.num_updates
            self.estimator.cancel()
            print_log(
                f'AGVM: update {self.num_updates} is not measured: {reason}',
                logger='current',
            )

    def before_backward(self, micro_batch: MicroBatch, scaler: Any = None) -> None:
        """Begin to measure at the first backward pass of a measured update.

        Under mixed precision there is a ``scaler`` of the loss.
        """
        if self.estimator.measuring:
            return
        scale = None
        if scaler is not None and scaler.is_enabled():
            # Scaling a 1 avoids the device synchronization of get_scale().
            device = self.optimizer.param_groups[0]['params'][0].device
            scale = scaler.scale(torch.ones((), device=device))
        self.estimator.start(micro_batch.passes, scale, images=micro_batch.images)

    def after_backward(self, micro_batch: MicroBatch) -> None:
        """Record a backward pass of a measured update."""
        if self.estimator.measuring:
            self.estimator.record(micro_batch.weight)

    def finish_measurement(self) -> None:
        """Update averages and multipliers if this update is measured.

        The gradients are complete afterwards.
        """
        statistics = self.estimator.finish() if self.estimator.measuring else None
        if statistics is None:
            return
        variances = {name: each.variance for name, each in statistics.items()}
        if self.modulator is None:
            accepted, multipliers = all(map(math.isfinite, variances.values())), {}
        else:
            accepted = self.modulator.update(variances)
            multipliers = dict(self.modulator.multipliers)
        if accepted:
            self.variances = variances
            self.num_measurements += 1
            self.noise.update(
                {name: each.signal_and_noise for name, each in statistics.items()},
                max(float(group['lr']) for group in self.optimizer.param_groups),
            )
        else:
            self.num_skipped_measurements += 1
        if self._on_measurement is not None:
            scales = self.noise.noise_scales()
            self._on_measurement(
                Measurement(self.num_updates, variances, multipliers, scales, accepted)
            )

    @contextmanager
    def scaled_learning_rates(self) -> Iterator[None]:
        """Have the optimizer step with each module's rate.

        Raises:
            RuntimeError: If a hook has unfrozen or added parameters that the run
                cannot take up.
        """
        check_trains_no_others(self.optimizer, self._known)
        split = self.optimizer, self._module_of, self.multipliers
        with scaled_learning_rates(*split), inner_groups(self.optimizer):
            yield

    def reset_update(self, *, dropped: bool) -> None:
        """Forget an update that was begun; it counts as one if it was ``dropped``."""
        self.num_updates += int(dropped)
        if self.estimator is not None:
            self.estimator.cancel()

    def state_dict(self) -> dict:
        """Return the state as plain Python values."""
        modulator = {} if self.modulator is None else self.modulator.state_dict()
        return dict(
            **modulator,
            modules=list(self.parameters),
            variances=self.variances,
            noise=self.noise.state_dict(),
            num_updates=self.num_updates,
            num_measurements=self.num_measurements,
            num_skipped_measurements=self.num_skipped_measurements,
            optimizer=type(stepping(self.optimizer)).__name__,
        )

    def load_state_dict(self, state_dict: Mapping) -> None:
        """Load a saved state; modules without a saved multiplier keep theirs."""
        if self.modulator is not None and 'multipliers' in state_dict:
            self.modulator.load_state_dict(state_dict)
        self.noise.load_state_dict(state_dict['noise'])
        self.variances = dict(state_dict['variances'])
        self.num_updates = state_dict['num_updates']
        self.num_measurements = state_dict['num_measurements']
        self.num_skipped_measurements = state_dict['num_skipped_measurements']
        self.reset_update(dropped=False)


def trainable(parameters: Iterable[nn.Parameter]) -> dict[int, nn.Parameter]:
    """Return the parameters that are not frozen now, by their ``id``."""
    return {id(each): each for each in parameters if each.requires_grad}


def check_trains_no_others(optimizer: Optimizer, known: Set[int]) -> None:
    """Check that an optimizer trains only parameters whose ids are known.

    Raises:
        RuntimeError: If a hook has unfrozen some of its parameters or added others.
    """
    trained = trainable(parameters_of(optimizer))
    new = [each for key, each in trained.items() if key not in known]
    if new:
        raise RuntimeError(
            f'{len(new)} parameters, the first of shape {tuple(new[0].shape)}, were '
            'frozen or not in the optimizer when the training began and are trained '
            'now. Neither DDP, which averages gradients over the ranks, nor AGVM, '
            'which scales learning rates by module, takes them up: train them from '
            'the beginning, or in a second run with load_from'
        )


def parameters_by_module(
    optimizer: Optimizer, module_of: Mapping[int, str]
) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of an optimizer by module, in the optimizer's order.

    ``module_of`` has the module of a parameter by its ``id``; others are left out.
    """
    by_module: dict[str, list[nn.Parameter]] = {}
    for parameter in parameters_of(optimizer):
        if id(parameter) in module_of:
            by_module.setdefault(module_of[id(parameter)], []).append(parameter)
    return by_module
