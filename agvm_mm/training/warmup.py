"""Warm-up: that of mmcv 1.x as a parameter scheduler, and where any of them ends."""

import copy
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

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


def learning_rates(
    schedulers: Sequence[ParamScheduler],
    groups: Sequence[dict],
    *,
    updates: int,
    epoch: int,
    accumulation: int = 1,
) -> list[float]:
    """Return the learning rate at each update of a run: the largest of any group.

    Args:
        schedulers: Before their first step. They and the groups stay as they are.
        groups: Parameter groups of their optimizer.
        updates: Updates of the run.
        epoch: Updates of an epoch.
        accumulation: Iterations of the loop in one update, at each of which schedulers
            step. Defaults to 1.
    """
    largest = max(
        range(len(groups)),
        key=lambda i: float(groups[i].get('initial_lr', groups[i]['lr'])),
    )
    group = {key: value for key, value in groups[largest].items() if key != 'params'}
    group['lr'] = float(group['lr'])
    # Schedulers that step count the steps of an optimizer.
    optimizer = SimpleNamespace(param_groups=[group], step=None)
    clones = [copy.copy(scheduler) for scheduler in schedulers]
    for clone in clones:
        clone.optimizer, clone.verbose = optimizer, False
        clone.base_values = [clone.base_values[largest]]
    rates = []
    with warnings.catch_warnings():
        # About schedules that step without an optimizer.
        warnings.simplefilter('ignore')
        for update in range(1, updates + 1):
            rates.append(float(group['lr']))
            for clone in clones:
                if not clone.by_epoch:
                    for _ in range(accumulation):
                        clone.step()
                elif update % epoch == 0:
                    clone.step()
    return rates


def end_of_warmup(rates: Sequence[float]) -> int:
    """Return the first update whose learning rate is at its peak, within 1%."""
    peak = max(rates)
    return next(update for update, rate in enumerate(rates) if rate > 0.99 * peak)
