"""Block of facts that a run prints when it starts."""

import math
from collections.abc import Iterable

from mmengine.dataset import DefaultSampler
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from agvm_mm.compat import library_versions
from agvm_mm.engine import ParamScheduler, accumulative_counts, auto_scaling, is_endless
from agvm_mm.method.modules import has_sync_bn
from agvm_mm.optim.agvm import AGVM
from agvm_mm.sharding.state import parameters_of
from agvm_mm.training.batch import BatchSize, describe_scaling
from agvm_mm.training.normalizers import describe_losses
from agvm_mm.training.resume import base_learning_rates


def describe_run(
    runner: Runner,
    batch: BatchSize,
    agvm: AGVM | None = None,
    estimator: str | None = None,
) -> str:
    """Describe batch, learning rate and AGVM of a run, counted in optimizer updates.

    With AGVM its estimator is given by name.
    """
    loop, wrapper = runner.train_loop, runner.optim_wrapper
    # With MMEngine's own accumulation an iteration is only a part of an update.
    iterations = accumulative_counts(wrapper)
    updates = math.ceil(loop.max_iters / iterations)
    epoch = math.ceil(len(loop.dataloader) / iterations)
    if is_endless(loop.dataloader.batch_sampler):  # It has the length of all ranks.
        epoch = math.ceil(len(loop.dataloader.dataset) / batch.total)
    max_iters, epochs = None, ''
    if isinstance(loop, IterBasedTrainLoop):
        max_iters, epochs = loop.max_iters, f' ({updates / epoch:,.1f} epochs)'
    scaling = describe_scaling(
        auto_scaling(runner),
        wrapper.optimizer.defaults['lr'],
        batch.total,
        max_iters,
        iterations,
    )
    lines = [
        'Large-batch training, counted in optimizer updates:',
        f'  batch     {batch}',
        f'  updates   {epoch:,} in an epoch, {updates:,} in all{epochs}, '
        f'{loop.iter // iterations:,} done',
        f'  versions  {", ".join(map(" ".join, library_versions().items()))}',
        f'  precision {describe_precision(wrapper)}',
        f'  lr        {describe_learning_rate(wrapper.optimizer)}',
        *(
            f'            {describe_scheduler(scheduler, iterations, loop)}'
            for scheduler in runner.param_schedulers or []
        ),
    ]
    if scaling:
        lines.append(f'            {scaling}')
    mode = loop.normalizers.mode if hasattr(loop, 'normalizers') else 'micro_batch'
    losses = describe_losses(runner.model, batch, mode)
    if losses:
        lines.append(f'  losses    {losses}')
    synchronized = batch.ranks > 1 and has_sync_bn(runner.model)
    if synchronized:
        lines.append(
            f'  SyncBN    sees a micro-batch of all ranks: {batch.ranks:,} x '
            f'{batch.images_per_rank:,} images'
        )
    repeated = repeated_images(loop.dataloader)
    if repeated:
        lines.append(
            f'  sampler   repeats {repeated:,} image(s) at the end of an epoch, so '
            'that ranks have equal numbers'
        )
    modules = agvm.parameters if agvm else {'all': parameters_of(wrapper.optimizer)}
    for module, own in modules.items():
        lines.append(f'  module    {module}: {count_trained(own):,} parameters')
    if agvm is not None:
        schedule, modulator = agvm.schedule, agvm.modulator
        end = f' to {schedule.end:,}' if schedule.end is not None else ''
        acts = f'anchor {modulator.anchor}' if modulator else 'not acting'
        lines.append(
            f'  AGVM      from update {schedule.begin:,}{end}, measured every '
            f'{schedule.interval} by {estimator}, {acts}'
        )
        lines.append(
            f'  noise     scales of micro-batches of {batch.images_per_rank:,} image(s)'
        )
        if synchronized:
            lines.append(
                '  noise     SyncBN couples the ranks, so noise scales are biased'
            )
    return '\n'.join(lines)


def count_trained(parameters: Iterable[nn.Parameter]) -> int:
    """Return the number of elements of the parameters that are trained."""
    return sum(p.numel() for p in parameters if p.requires_grad)


def repeated_images(dataloader: DataLoader) -> int:
    """Return how many images MMEngine's DefaultSampler repeats in an epoch."""
    sampler = getattr(dataloader.batch_sampler, 'sampler', None)
    if not isinstance(sampler, DefaultSampler):
        return 0
    return sampler.total_size - len(sampler.dataset)


def describe_precision(optim_wrapper: OptimWrapper) -> str:
    """Return 'mixed', or the type of the trainable parameters, such as 'float32'."""
    if isinstance(optim_wrapper, AmpOptimWrapper):
        return 'mixed'
    parameters = parameters_of(optim_wrapper.optimizer)
    types = {p.dtype for p in parameters if p.requires_grad}
    return ', '.join(sorted(str(dtype).removeprefix('torch.') for dtype in types))


def describe_learning_rate(optimizer: Optimizer) -> str:
    """Describe the learning rate before any schedule, or the range of several."""
    rates = base_learning_rates(optimizer.param_groups)
    ends = dict.fromkeys((f'{rates[0]:g}', f'{rates[-1]:g}'))
    return f'{" to ".join(ends)} ({type(optimizer).__name__})'


def describe_scheduler(
    scheduler: ParamScheduler, iterations: int, loop: BaseLoop
) -> str:
    """Describe kind, unit and range of a schedule; ``iterations`` make one update."""
    limit = loop.max_epochs if scheduler.by_epoch else loop.max_iters
    unit, size = ('epoch', 1) if scheduler.by_epoch else ('update', iterations)
    text = f'{type(scheduler).__name__} from {unit} {scheduler.begin // size:,}'
    # MMEngine's default end is about 10^9.
    if scheduler.end < 10**9:
        text += f' to {scheduler.end // size:,}'
        if scheduler.end > limit + 1:  # That of the exponential warm-up is one more.
            text += f' (the run ends at {limit // size:,})'
    if hasattr(scheduler, 'milestones'):
        steps = sorted(scheduler.milestones.elements())
        text += f' at {", ".join(f"{step // size:,}" for step in steps)}'
    return text
