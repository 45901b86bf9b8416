"""The block of facts that a run prints when it starts."""

from mmengine.dist import get_world_size
from mmengine.optim import OptimWrapper, _ParamScheduler
from torch.optim import Optimizer

from agvm_mm.loops.batch_size import effective_batch_size, micro_batches_per_update
from agvm_mm.modulator import MeasurementSchedule


def parameter_counts(optim_wrapper: OptimWrapper) -> dict[str, int]:
    """Trainable parameters of each module, by its name."""
    counts: dict[str, int] = {}
    for group in optim_wrapper.optimizer.param_groups:
        trainable = sum(p.numel() for p in group['params'] if p.requires_grad)
        if trainable:
            module = group.get('module', 'all')
            counts[module] = counts.get(module, 0) + trainable
    return counts


def describe_run(
    runner,
    schedule: MeasurementSchedule | None = None,
    estimator: str | None = None,
) -> str:
    """Batch, learning rate and AGVM of a run, counted in optimizer updates.

    Args:
        runner (Runner): About to train.
        schedule (MeasurementSchedule, optional): AGVM's. Defaults to None, no AGVM.
        estimator (str, optional): AGVM's estimator. Defaults to None.

    Returns:
        str: Several lines.
    """
    loop = runner.train_loop
    wrapper = runner.optim_wrapper
    # With MMEngine's own accumulation an iteration is only a part of an update.
    iterations = wrapper._accumulative_counts
    updates = -(-loop.max_iters // iterations)
    micro_batches = micro_batches_per_update(runner)
    ranks = get_world_size()
    total = effective_batch_size(runner)
    lines = [
        'Large-batch training, counted in optimizer updates:',
        f'  batch     {total} images = {ranks} rank(s) x '
        f'{total // ranks // micro_batches} images x {micro_batches} micro-batch(es)',
        f'  updates   {len(loop.dataloader) // iterations} in an epoch, {updates} in '
        f'all, {wrapper_updates(runner)} done',
        f'  lr        {describe_learning_rate(wrapper.optimizer)}',
        *(f'            {line}' for line in describe_schedulers(runner, iterations)),
    ]
    for module, count in parameter_counts(wrapper).items():
        lines.append(f'  module    {module}: {count:,} parameters')
    if schedule is not None:
        end = f' to {schedule.end}' if schedule.end is not None else ''
        lines.append(
            f'  AGVM      from update {schedule.begin}{end}, measured every '
            f'{schedule.interval} by {estimator}, anchor {wrapper.modulator.anchor}'
        )
    return '\n'.join(lines)


def wrapper_updates(runner) -> int:
    """Optimizer updates that a run has behind it."""
    return runner.train_loop.iter // runner.optim_wrapper._accumulative_counts


def describe_learning_rate(optimizer: Optimizer) -> str:
    """The learning rate before any schedule, or the range of several."""
    rates = sorted(
        {float(g.get('initial_lr', g['lr'])) for g in optimizer.param_groups}
    )
    name = type(optimizer).__name__
    if len(rates) == 1:
        return f'{rates[0]:g} ({name})'
    return f'{rates[0]:g} to {rates[-1]:g} ({name})'


def describe_schedulers(runner, iterations: int) -> list[str]:
    """One line for each schedule: its kind and when it acts.

    Args:
        runner (Runner): About to train.
        iterations (int): Iterations of the loop in one update.
    """
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        schedulers = [one for several in schedulers.values() for one in several]
    return [describe_scheduler(scheduler, iterations) for scheduler in schedulers]


def describe_scheduler(scheduler: _ParamScheduler, iterations: int) -> str:
    """Kind, unit and reach of one schedule."""
    unit, size = ('epoch', 1) if scheduler.by_epoch else ('update', iterations)
    text = f'{type(scheduler).__name__} from {unit} {scheduler.begin // size}'
    # MMEngine's sign for a schedule without an end.
    if scheduler.end < 10**9:
        text += f' to {scheduler.end // size}'
    if hasattr(scheduler, 'milestones'):
        steps = sorted(scheduler.milestones.elements())
        text += f' at {", ".join(str(step // size) for step in steps)}'
    return text
