"""Optimizer wrappers that step each module with its own learning rate."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from agvm_mm.engine import ConditionalClipping
from agvm_mm.estimators import build_preconditioner
from agvm_mm.method.modulator import Modulator
from agvm_mm.optim.measuring import MeasuringMixin
from agvm_mm.preflight import check_clip_window, check_still_frozen
from agvm_mm.training.match import base_learning_rates, check_same_training, compare
from agvm_mm.validation import suggests_arguments

# Keys of optim_wrapper in a config that are not arguments of the wrapper itself.
CONSTRUCTOR_SETTINGS = ('base_constructor', 'constructor', 'modules', 'paramwise_cfg')
MIXED_PRECISION = "For mixed precision set type='AGVMAmpOptimWrapper'"


class AGVMMixin(MeasuringMixin, ConditionalClipping):
    """Mixin that adds AGVM to an optimizer wrapper of MMEngine.

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
        # Raises for an optimizer that AGVM is not defined for.
        build_preconditioner(self.optimizer)
        modules = dict.fromkeys(group['module'] for group in groups)
        modules.pop(None, None)
        self.modulator = Modulator(
            list(modules),
            anchor=anchor,
            momentum=momentum,
            ratio_bounds=ratio_bounds,
        )
        self.prepare_measuring()
        self.effective_batch_size: int | None = None
        self.has_new_groups = False

    @property
    def multipliers(self) -> dict[str, float]:
        """Multipliers (mu) in effect, by module name."""
        schedule = self._schedule
        if schedule is not None and not schedule.is_active(self.num_updates):
            return dict.fromkeys(self.modulator.multipliers, 1.0)
        return dict(self.modulator.multipliers)

    def step(self, **kwargs) -> None:
        """Update the multipliers, then step with each module's learning rate.

        The measurement comes before clipping, as in the paper. Afterwards the learning
        rates of the parameter groups are what they were, even if the step raises.
        """
        self._check_attached()
        # Before the learning rates are scaled.
        self.finish_measurement()
        with self._modulated_lr():
            super().step(**kwargs)

    def accept(self, variances: Mapping[str, float]) -> bool:
        """Update the multipliers; return whether the measurement can be used."""
        if not self._schedule.act:
            return super().accept(variances)
        return self.modulator.update(variances)

    def applied_multipliers(self) -> dict[str, float]:
        """Return the multipliers (mu) if they are applied."""
        return dict(self.modulator.multipliers) if self._schedule.act else {}

    def clips_now(self) -> bool:
        """Return whether this update lies in ``clip_window``."""
        window = self.clip_window
        return window is None or window[0] <= self.num_updates <= window[1]

    def state_dict(self) -> dict:
        """Return the optimizer's state and, under 'agvm', the state of AGVM."""
        state_dict = super().state_dict()
        state_dict['agvm'] = dict(
            **self.modulator.state_dict(),
            variances=self.variances,
            noise=self.noise.state_dict(),
            num_updates=self.num_updates,
            num_measurements=self.num_measurements,
            num_skipped_measurements=self.num_skipped_measurements,
            effective_batch_size=self.effective_batch_size,
            optimizer=type(self.optimizer).__name__,
        )
        return state_dict

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a saved state after checking that it belongs to this training.

        With ``allow_resume_mismatch`` differences are logged instead. Multipliers of
        modules that both have are kept and others start at 1, schedules continue as
        saved, and with other modules or another optimizer the optimizer starts without
        its moments. The batch size is compared when the training starts.

        Raises:
            ValueError: If it was not saved by an AGVM wrapper, or by one with another
                anchor, other modules, another optimizer or other learning rates.
        """
        state_dict = dict(state_dict)
        if 'agvm' not in state_dict:
            if not self.allow_resume_mismatch:
                raise ValueError(
                    'the checkpoint has no AGVM state: it was trained with another '
                    'optimizer wrapper. Resume it with that one, or start from its '
                    'weights with load_from'
                )
            print_log(
                'AGVM: the checkpoint has no AGVM state; multipliers start at 1 and '
                'the optimizer without its moments',
                logger='current',
                level=logging.WARNING,
            )
            self._keep_new_groups(state_dict)
            super().load_state_dict(state_dict)
            return
        saved = state_dict.pop('agvm')
        # Before the optimizer, whose own message about other groups explains nothing.
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
        check_same_training(differences, allowed=self.allow_resume_mismatch)
        if {'modules', 'optimizer'} & differences.keys():
            self._keep_new_groups(state_dict)
        super().load_state_dict(state_dict)
        self.modulator.load_state_dict(saved)
        self._variances = dict(saved['variances'])
        if 'noise' in saved:  # Not in checkpoints of version 0.1.
            self.noise.load_state_dict(saved['noise'])
        self.num_updates = saved['num_updates']
        self.num_measurements = saved['num_measurements']
        self.num_skipped_measurements = saved['num_skipped_measurements']
        self.effective_batch_size = saved['effective_batch_size']
        self.reset_update(dropped=False)

    def _keep_new_groups(self, state_dict: dict) -> None:
        """Replace saved groups, which do not match those of this optimizer."""
        state_dict.update(self.optimizer.state_dict())
        self.has_new_groups = True

    @contextmanager
    def _modulated_lr(self) -> Iterator[None]:
        groups = self.optimizer.param_groups
        saved = [group['lr'] for group in groups]
        multipliers = self.multipliers
        try:
            for group in groups:
                if group['module'] is None:
                    check_still_frozen(group['params'])
                else:
                    group['lr'] = group['lr'] * multipliers[group['module']]
            yield
        finally:
            for group, lr in zip(groups, saved, strict=True):
                group['lr'] = lr


@OPTIM_WRAPPERS.register_module()
@suggests_arguments(
    *CONSTRUCTOR_SETTINGS,
    advice=dict.fromkeys(('loss_scale', 'dtype', 'use_fsdp'), MIXED_PRECISION),
)
class AGVMOptimWrapper(AGVMMixin, OptimWrapper):
    """Optimizer wrapper that scales each module's learning rate by its mu.

    Takes the place of MMEngine's ``OptimWrapper``, and ``AGVMAmpOptimWrapper`` that of
    ``AmpOptimWrapper``. Built by ``AGVMOptimWrapperConstructor``; ``VarianceSyncHook``
    decides how and when it measures. Method: Xue et al., NeurIPS 2022 (arXiv
    2210.11078).

    Args:
        anchor: Module whose gradient variance the others are matched to; its multiplier
            is 1. Defaults to 'backbone'.
        momentum: Weight of the past in the moving average of the multipliers, in
            [0, 1). Defaults to 0.97.
        ratio_bounds: Smallest and largest ratio of the anchor's variance to a module's;
            multipliers lie between the square roots. Defaults to (0.5, 10.0).
        clip_window: First and last update (from 0, both included) at which
            ``clip_grad`` acts. Defaults to None, always.
        allow_resume_mismatch: Whether to resume a checkpoint of another batch size,
            anchor, module split, optimizer or learning rate instead of raising.
            Defaults to False.

    Keyword Args:
        optimizer (Optimizer): SGD, Adam or AdamW; its groups have the key 'module'.
        accumulative_counts (int): Micro-batches of one update. Defaults to 1.
        clip_grad (dict | None): As in MMEngine's ``OptimWrapper``; gradients are
            clipped after they have been measured. Defaults to None.

    Raises:
        ValueError: If it was not built by the constructor, the anchor has no trainable
            parameters, or a number is out of range.
        TypeError: If AGVM is not defined for the optimizer.

    Example:
        >>> optim_wrapper = dict(
        ...     type='AGVMOptimWrapper',
        ...     constructor='AGVMOptimWrapperConstructor',
        ...     optimizer=dict(type='SGD', lr=0.2263, momentum=0.9),
        ...     anchor='backbone',
        ... )
        >>> default_hooks = dict(
        ...     agvm=dict(type='VarianceSyncHook', interval=10, begin=1020)
        ... )
    """


@OPTIM_WRAPPERS.register_module()
@suggests_arguments(*CONSTRUCTOR_SETTINGS)
class AGVMAmpOptimWrapper(AGVMMixin, AmpOptimWrapper):
    """:class:`AGVMOptimWrapper` for automatic mixed precision.

    Takes the arguments of MMEngine's ``AmpOptimWrapper`` (``loss_scale``, ``dtype``) in
    addition to its own.
    """
