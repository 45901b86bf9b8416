"""The exponential warm-up of mmcv 1.x as a parameter scheduler of MMEngine."""

from mmengine.optim import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from agvm_mm.validation import check_number, suggests_arguments


@PARAM_SCHEDULERS.register_module()
@suggests_arguments()
class ExponentialWarmupLR(_ParamScheduler):
    """Raises the learning rate exponentially from a small part of it to all of it.

        lr(t) = lr * start_factor ** (1 - t / T)    for 0 <= t < T = end - begin

    and lr(t) = lr from t = T on, t counted from ``begin``: mmcv 1.x's
    ``warmup='exp'`` with ``warmup_ratio=start_factor`` and ``warmup_iters=T``.
    (MMEngine's ``LinearLR`` reaches the full value one step earlier, at T - 1.)
    It multiplies what is there, so it combines with other schedulers; list it
    before one that begins where it ends.

    Args:
        optimizer (Optimizer or BaseOptimWrapper): Whose ``lr`` is scheduled.
        start_factor (float): Part of the learning rate to begin with, above 0 and
            at most 1. Defaults to 1e-3.
        begin (int): First step of the warm-up, in epochs or in updates as
            ``by_epoch`` says. Defaults to 0.
        end (int): First step at the full learning rate. There is no default: a
            warm-up has to end.
        last_step (int): As in MMEngine. Defaults to -1.
        by_epoch (bool): Whether steps are epochs. With ``convert_to_iter_based``
            a config may give epochs and warm up at every update. Defaults to True.
        verbose (bool): Whether to print each value. Defaults to False.

    Raises:
        TypeError: If ``start_factor`` is not a number.
        ValueError: If it is out of range, or ``end`` is not after ``begin``.

    Example:
        >>> param_scheduler = [
        ...     dict(type='ExponentialWarmupLR', by_epoch=False, begin=0, end=920),
        ...     dict(type='MultiStepLR', by_epoch=True, milestones=[12, 14]),
        ... ]
    """

    def __init__(
        self,
        optimizer,
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
        # The base class acts while step < end; this one also acts at step `end`,
        # where it makes the learning rate whole.
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
        *args,
        end: float,
        begin: float = 0,
        by_epoch: bool = True,
        epoch_length: int | None = None,
        **kwargs,
    ) -> 'ExponentialWarmupLR':
        """Build one that steps at every update from a config that counts epochs.

        Args:
            end (float): First epoch at the full learning rate; may be a fraction.
            begin (float): First epoch of the warm-up. Defaults to 0.
            by_epoch (bool): Must be True. Defaults to True.
            epoch_length (int): Updates of one epoch.

        Raises:
            ValueError: If the config does not count epochs, or their length is
                unknown.
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

    def factor(self, step: int) -> float:
        """Part of the full learning rate at a step, counted from ``begin``."""
        return self.start_factor ** (1 - step / self.warmup_steps)

    def _get_value(self) -> list[float]:
        # A fresh quotient at each step: the rounding of one constant factor would
        # add up over a long warm-up.
        change = self.factor(self.last_step)
        if self.last_step > 0:
            change /= self.factor(self.last_step - 1)
        return [group['lr'] * change for group in self.optimizer.param_groups]
