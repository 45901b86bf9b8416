"""The optimizer wrappers that step each module with its own learning rate."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor

from agvm_mm.validation import check_number, suggests_arguments
from agvm_mm.estimators import VarianceEstimator, build_preconditioner
from agvm_mm.modulator import Modulator
from agvm_mm.checkpoint.match import base_learning_rates, compare, report_differences
from agvm_mm.modulator import MeasurementSchedule

# What a config says beside a wrapper's own arguments.
CONSTRUCTOR_SETTINGS = ('constructor', 'modules', 'paramwise_cfg')


def check_clip_window(window: object, clips: bool) -> None:
    """Check a window of updates in which gradients are clipped.

    Args:
        window (object): What the user gave: None or (first, last).
        clips (bool): Whether ``clip_grad`` is set.

    Raises:
        TypeError: If it is no pair of whole numbers.
        ValueError: If it is out of order, or there is no ``clip_grad``.
    """
    if window is None:
        return
    if not isinstance(window, Sequence) or len(window) != 2:
        raise TypeError(
            f'clip_window must be a pair (first update, last update), got {window!r}'
        )
    check_number('clip_window[0]', window[0], low=0, integer=True)
    check_number('clip_window[1]', window[1], low=window[0], integer=True)
    if not clips:
        raise ValueError(
            f'clip_window={tuple(window)} without clip_grad clips nothing; add '
            'clip_grad=dict(max_norm=1.0)'
        )


class AGVMMixin:
    """Adds AGVM to an optimizer wrapper of MMEngine.

    ``VarianceSyncHook`` attaches an estimator and a schedule when training begins.
    """

    def __init__(
        self,
        *args,
        anchor: str = 'backbone',
        momentum: float = 0.97,
        ratio_bounds: tuple[float, float] = (0.5, 10.0),
        clip_window: tuple[int, int] | None = None,
        allow_resume_mismatch: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_clip_window(clip_window, clips=bool(self.clip_grad_kwargs))
        self.clip_window = clip_window
        self.allow_resume_mismatch = allow_resume_mismatch
        groups = self.optimizer.param_groups
        if not all('module' in group for group in groups):
            raise ValueError(
                f'{type(self).__name__} needs parameter groups that know their '
                'module; add constructor="AGVMOptimWrapperConstructor" to '
                'optim_wrapper'
            )
        # Refuses an optimizer that AGVM is not defined for.
        build_preconditioner(self.optimizer)
        modules = dict.fromkeys(group['module'] for group in groups)
        modules.pop(None, None)
        self.modulator = Modulator(
            list(modules),
            anchor=anchor,
            momentum=momentum,
            ratio_bounds=ratio_bounds,
        )
        self._variances: dict[str, float] = {}
        self._estimator: VarianceEstimator | None = None
        self._schedule: MeasurementSchedule | None = None
        self._in_update = False
        self._measuring = False
        self.num_updates = 0
        self.num_measurements = 0
        self.num_skipped_measurements = 0
        self.rejected_variances: dict[str, float] = {}
        self.effective_batch_size: int | None = None

    @property
    def multipliers(self) -> dict[str, float]:
        """dict[str, float]: The mu in force, by module name."""
        schedule = self._schedule
        if schedule is not None and not schedule.is_active(self.num_updates):
            return dict.fromkeys(self.modulator.multipliers, 1.0)
        return dict(self.modulator.multipliers)

    @property
    def variances(self) -> dict[str, float]:
        """dict[str, float]: The last measured Phi, by module name."""
        return dict(self._variances)

    def attach(
        self, estimator: VarianceEstimator, schedule: MeasurementSchedule
    ) -> None:
        """Say how and when gradient variances are measured.

        Args:
            estimator (VarianceEstimator): Built for this optimizer and the model.
            schedule (MeasurementSchedule): When to measure and to act.
        """
        self._estimator = estimator
        self._schedule = schedule

    @contextmanager
    def optim_context(self, model) -> Iterator[None]:
        """See :meth:`OptimWrapper.optim_context`.

        Raises:
            RuntimeError: If nothing measures gradient variances for this wrapper.
        """
        self._require_estimator()
        with super().optim_context(model):
            yield

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Back-propagate, and let the estimator see the gradients if it measures."""
        if not self._in_update:
            self._require_estimator()
            self._in_update = True
            self._measuring = self._schedule.is_measured(
                self.num_updates
            ) and self._estimator.start(
                self._micro_batches_of_update(), self._loss_scale()
            )
        if not self._measuring:
            super().backward(loss, **kwargs)
            return
        # What the loss was multiplied by, asked of the very method that did it.
        weight = self.scale_loss(torch.ones((), dtype=torch.float64)).item()
        super().backward(loss, **kwargs)
        self._estimator.after_backward(weight)

    def step(self, **kwargs) -> None:
        """Take in the measurement, then step with each module's learning rate.

        Measured before clipping, as the paper does. The learning rates of the
        parameter groups are afterwards what they were, also if the step raises.
        """
        self._require_estimator()
        if self._measuring:
            self._measuring = False
            self._take_in(self._estimator.finish())
        with self._modulated_lr():
            super().step(**kwargs)
        self.num_updates += 1
        self._in_update = False

    def _clip_grad(self) -> None:
        window = self.clip_window
        if window is None or window[0] <= self.num_updates <= window[1]:
            super()._clip_grad()

    def state_dict(self) -> dict:
        """The optimizer's state and, under 'agvm', AGVM's own."""
        state_dict = super().state_dict()
        state_dict['agvm'] = dict(
            **self.modulator.state_dict(),
            variances=self.variances,
            num_updates=self.num_updates,
            num_measurements=self.num_measurements,
            num_skipped_measurements=self.num_skipped_measurements,
            effective_batch_size=self.effective_batch_size,
            optimizer=type(self.optimizer).__name__,
        )
        return state_dict

    def load_state_dict(self, state_dict: dict) -> None:
        """Take up a saved state, and check that it is of this training.

        Under ``allow_resume_mismatch`` a difference is logged instead. Then
        multipliers of modules that both have go on and others start at 1, schedules
        go on as saved, and with other modules or another optimizer the optimizer
        starts without its moments. The number of images of an update is compared by
        ``VarianceSyncHook``, which knows it.

        Raises:
            ValueError: If it was not written by an AGVM wrapper, or by one with
                another anchor, other modules, another optimizer or other learning
                rates.
        """
        state_dict = dict(state_dict)
        if 'agvm' not in state_dict:
            raise ValueError(
                'the checkpoint holds no AGVM state: it was trained with another '
                'optimizer wrapper. Resume it with that one, or start from its '
                'weights with load_from'
            )
        saved = state_dict.pop('agvm')
        # Before the optimizer: its own message about other groups explains nothing.
        differences = compare(
            dict(
                saved,
                modules=list(saved['multipliers']),
                learning_rates=base_learning_rates(state_dict['param_groups']),
            ),
            dict(
                anchor=self.modulator.anchor,
                modules=list(self.modulator.multipliers),
                optimizer=type(self.optimizer).__name__,
                learning_rates=base_learning_rates(self.optimizer.param_groups),
            ),
        )
        report_differences(differences, allowed=self.allow_resume_mismatch)
        if {'modules', 'optimizer'} & differences.keys():
            # Group by group, nothing fits.
            state_dict.update(self.optimizer.state_dict())
        super().load_state_dict(state_dict)
        self.modulator.load_state_dict(saved)
        self._variances = dict(saved['variances'])
        self.num_updates = saved['num_updates']
        self.num_measurements = saved['num_measurements']
        self.num_skipped_measurements = saved['num_skipped_measurements']
        self.effective_batch_size = saved['effective_batch_size']
        self._in_update = self._measuring = False

    def _require_estimator(self) -> None:
        if self._estimator is None:
            raise RuntimeError(
                f'nothing measures gradient variances for {type(self).__name__}; add '
                "custom_hooks=[dict(type='VarianceSyncHook')] to the config"
            )

    def _micro_batches_of_update(self) -> int:
        """Backward passes of the update that now begins.

        MMEngine accumulates ``accumulative_counts`` of them, and at the very end of
        the training what is left.
        """
        if self._max_counts < 0:
            return self._accumulative_counts
        left = self._max_counts - self._inner_count
        return min(self._accumulative_counts, left)

    def _loss_scale(self) -> Tensor | None:
        """What gradients are multiplied by, on their device; None for 1."""
        return None

    def _take_in(self, variances: dict[str, float]) -> None:
        if self.modulator.update(variances):
            self._variances = variances
            self.num_measurements += 1
            self.rejected_variances = {}
        else:
            self.num_skipped_measurements += 1
            self.rejected_variances = variances

    @contextmanager
    def _modulated_lr(self) -> Iterator[None]:
        groups = self.optimizer.param_groups
        saved = [group['lr'] for group in groups]
        multipliers = self.multipliers
        try:
            for group in groups:
                if group['module'] is not None:
                    group['lr'] = group['lr'] * multipliers[group['module']]
            yield
        finally:
            for group, lr in zip(groups, saved, strict=True):
                group['lr'] = lr


@OPTIM_WRAPPERS.register_module()
@suggests_arguments(*CONSTRUCTOR_SETTINGS)
class AGVMOptimWrapper(AGVMMixin, OptimWrapper):
    """Optimizer wrapper that scales each module's learning rate by its mu.

    Built by ``AGVMOptimWrapperConstructor`` and fed by ``VarianceSyncHook``. The
    method is that of Xue et al., NeurIPS 2022 (arXiv 2210.11078).

    Args:
        optimizer (Optimizer): SGD, Adam or AdamW; its groups carry 'module'.
        accumulative_counts (int): Micro-batches of one update. Defaults to 1.
        clip_grad (dict, optional): As in MMEngine's ``OptimWrapper``; gradients are
            clipped after they have been measured. Defaults to None.
        anchor (str): Module whose gradient variance the others are matched to; its
            multiplier is 1. Defaults to 'backbone'.
        momentum (float): Weight of the past in the multipliers' moving average, in
            [0, 1). Defaults to 0.97.
        ratio_bounds (tuple[float, float]): Smallest and largest ratio of the
            anchor's to a module's variance; multipliers lie between the square
            roots. Defaults to (0.5, 10.0).
        clip_window (tuple[int, int], optional): First and last update (from 0, both
            included) at which ``clip_grad`` acts. Defaults to None, always.
        allow_resume_mismatch (bool): Go on from a checkpoint of another batch size,
            anchor, module split, optimizer or learning rate instead of stopping.
            Defaults to False.

    Raises:
        ValueError: If it was not built by the constructor, the anchor has no
            trainable parameters, or a number is out of its range.
        TypeError: If AGVM is not defined for the optimizer.

    Example:
        >>> optim_wrapper = dict(
        ...     type='AGVMOptimWrapper',
        ...     constructor='AGVMOptimWrapperConstructor',
        ...     optimizer=dict(type='SGD', lr=0.2263, momentum=0.9),
        ...     anchor='backbone',
        ... )
        >>> custom_hooks = [dict(type='VarianceSyncHook', interval=10, begin=1020)]
    """


@OPTIM_WRAPPERS.register_module()
@suggests_arguments(*CONSTRUCTOR_SETTINGS)
class AGVMAmpOptimWrapper(AGVMMixin, AmpOptimWrapper):
    """:class:`AGVMOptimWrapper` for automatic mixed precision.

    Takes the arguments of MMEngine's ``AmpOptimWrapper`` (``loss_scale``,
    ``dtype``) beside its own.
    """

    def _loss_scale(self) -> Tensor | None:
        if not self.loss_scaler.is_enabled():
            return None
        # By multiplying: to ask the scaler for the number would wait for the device.
        device = self.optimizer.param_groups[0]['params'][0].device
        return self.loss_scaler.scale(torch.ones((), device=device))
