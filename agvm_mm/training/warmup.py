"""Warm-up: that of mmcv 1.x as a parameter scheduler, and where any of them ends."""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch.optim import Optimizer

from agvm_mm.engine import ParamScheduler
from agvm_mm.validation import check_number, suggests_arguments


@PARAM_SCHEDULERS.register_module()
@suggests_arguments()
class ExponentialWarmupLR(ParamScheduler):
    """Warm-up that raises the learning rate exponentially to its full value.

        lr(t) = lr * start_factor ** (1 - t / T)    for 0 <= t < T = end - begin

    and lr(t) = lr for t >= T, with t counted from ``begin``. This equals
    ``warmup='exp'`` of mmcv 1.x with ``warmup_ratio=start_factor`` and
    ``warmup_iters=T``. (MMEngine's ``LinearLR`` reaches the full value one step
    earlier, at T - 1.) It multiplies the current learning rate, so it combines with
    other schedulers; list it before a scheduler that begins where it ends.

    Args:
        optimizer: Optimizer or optimizer wrapper whose ``lr`` is scheduled.
        start_factor: Factor of the learning rate at ``begin``, in (0, 1]. Defaults to
            1e-3.
        end: First step at the full learning rate. Required, because a warm-up must end.
        begin: First step of the warm-up, in epochs if ``by_epoch`` and in updates
            otherwise. Defaults to 0.
        last_step: As in MMEngine. Defaults to -1.
        by_epoch: Whether steps are epochs. With ``convert_to_iter_based=True`` a config
            counts in epochs and the warm-up steps at every update. Defaults to True.
        verbose: Whether to print each value. Defaults to False.

    Raises:
        TypeError: If ``start_factor`` is not a number.
        ValueError: If ``start_factor`` is out of range or ``end`` is not after
            ``begin``.

    Example:
        >>> param_scheduler = [
        ...     dict(type='ExponentialWarmupLR', by_epoch=False, begin=0, end=920),
        ...     dict(type='MultiStepLR', by_epoch=True, milestones=[12, 14]),
        ... ]
    """

    def __init__(
        self,
        optimizer: Optimizer | BaseOptimWrapper,
        start_factor: float = 1e-3,
        *,
        end: int,
        begin: int = 0,
        last_step: int = -1,
        by_epoch: bool = True,
        verbose: bool = False,
    ) -> None:
        check_number('start_factor', start_factor, above=0, high=1)
        if end <= begin:
            raise ValueError(f'end must be after begin={begin}, got {end}')
        self.start_factor = start_factor
        self.warmup_steps = end - begin
        # The base class acts while step < end, but the full learning rate is first
        # reached at step `end`.
        super().__init__(
            optimizer,
            param_name='lr',
            begin=begin,
            end=end + 1,
            last_step=last_step,
            by_epoch=by_epoch,
            verbose=verbose,
        )

    @classmethod
    def build_iter_from_epoch(
        cls,
        *args: Any,
        end: float,
        begin: float = 0,
        by_epoch: bool = True,
        epoch_length: int | None = None,
        **kwargs: Any,
    ) -> 'ExponentialWarmupLR':
        """Build a scheduler that steps at every update from settings in epochs.

        ``begin`` and ``end`` may be fractions; ``epoch_length`` is in updates.

        Raises:
            ValueError: If ``by_epoch`` is False or the epoch's length is unknown.
        """
        if not by_epoch:
            raise ValueError('only by_epoch=True can be converted to updates')
        if not epoch_length or epoch_length < 0:
            raise ValueError(f'epoch_length must be positive, got {epoch_length}')
        return cls(
            *args,
            begin=int(begin * epoch_length),
            end=int(end * epoch_length),
            by_epoch=False,
            **kwargs,
        )

    def _get_value(self) -> list[float]:
        # Compute the quotient at each step: the rounding error of a constant factor
        # would accumulate over a long warm-up.
        step = self.last_step
        change = self.start_factor ** (1 - step / self.warmup_steps)
        if step > 0:
            change /= self.start_factor ** (1 - (step - 1) / self.warmup_steps)
        return [group['lr'] * change for group in self.optimizer.param_groups]


def step_schedules(
    schedulers: Sequence[ParamScheduler],
    iterations: int,
    epoch: int,
    ended: float = math.inf,
) -> Iterator[int]:
    """Step schedules as a loop does, without a training.

    Args:
        schedulers: Before their first step.
        iterations: Iterations of the loop.
        epoch: Iterations of an epoch; in a loop that counts iterations, all of them.
        ended: Epochs that end. Defaults to infinity, all.

    Yields:
        Each iteration, before the steps that follow it.
    """
    by_epoch = [each for each in schedulers if each.by_epoch]
    by_iteration = [each for each in schedulers if not each.by_epoch]
    with warnings.catch_warnings():
        # About steps of a schedule before the first step of the optimizer.
        warnings.simplefilter('ignore')
        for iteration in range(iterations):
            yield iteration
            epochs, rest = divmod(iteration + 1, epoch)
            ends_epoch = not rest and epochs <= ended
            for scheduler in by_iteration + (by_epoch if ends_epoch else []):
                scheduler.step()


def learning_rates(
    schedulers: Sequence[ParamScheduler],
    groups: Sequence[dict],
    *,
    iterations: int,
    epoch: int,
    accumulation: int = 1,
) -> list[float]:
    """Return the learning rate at each update of a run: the largest of any group.

    Schedules that follow a metric are left out.

    Args:
        schedulers: Before their first step. They and the groups stay as they are.
        groups: Parameter groups of their optimizer.
        iterations: Iterations of the loop.
        epoch: See :func:`step_schedules`.
        accumulation: Iterations in one update. Defaults to 1.
    """
    largest = max(
        range(len(groups)),
        key=lambda i: float(groups[i].get('initial_lr', groups[i]['lr'])),
    )
    group = {key: value for key, value in groups[largest].items() if key != 'params'}
    group['lr'] = float(group['lr'])
    # Schedulers that step count the steps of an optimizer.
    optimizer = SimpleNamespace(param_groups=[group], step=None)
    clones = [copy.copy(each) for each in schedulers if not follows_metric(each)]
    for clone in clones:
        clone.optimizer, clone.verbose = optimizer, False
        clone.base_values = [clone.base_values[largest]]
    return [
        float(group['lr'])
        for iteration in step_schedules(clones, iterations, epoch)
        if (iteration + 1) % accumulation == 0 or iteration + 1 == iterations
    ]


def follows_metric(scheduler: ParamScheduler) -> bool:
    """Return whether a schedule steps on the results of the validation."""
    return getattr(scheduler, 'need_val_args', False)


def check_counts_iterations(
    loop: str, schedulers: Sequence[ParamScheduler], hooks: Sequence[Hook]
) -> None:
    """Check that nothing waits for the epochs of a loop that has none.

    Raises:
        ValueError: If a schedule never steps, or a hook saves no checkpoint before the
            end.
    """
    waiting = [
        ('param_scheduler', scheduler, 'never step')
        for scheduler in schedulers
        if scheduler.by_epoch and not follows_metric(scheduler)
    ] + [
        ('default_hooks.checkpoint', hook, 'save at the end only')
        for hook in hooks
        if isinstance(hook, CheckpointHook) and hook.by_epoch and hook.interval > 0
    ]
    for setting, part, consequence in waiting:
        raise ValueError(
            f'{setting}: {type(part).__name__} counts epochs, which {loop} does not '
            f'have, so it would {consequence}; set by_epoch=False and give its numbers '
            'in optimizer updates'
        )


def end_of_warmup(rates: Sequence[float]) -> int:
    """Return the first update whose learning rate is at its peak, within 1%."""
    peak = max(rates)
    return next(update for update, rate in enumerate(rates) if rate >= 0.99 * peak)
