"""Images of one optimizer update."""

from collections.abc import Mapping
from dataclasses import dataclass

from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from agvm_mm.engine import accumulative_counts, is_endless
from agvm_mm.validation import check_number


@dataclass(frozen=True)
class BatchSize:
    """Images of one full update, and how they are divided.

    Args:
        ranks: Number of ranks.
        images_per_rank: Images of one micro-batch on one rank.
        micro_batches: Micro-batches of one update on each rank.
    """

    ranks: int
    images_per_rank: int
    micro_batches: int

    @property
    def total(self) -> int:
        """Images of one full update over all ranks."""
        return self.ranks * self.images_per_rank * self.micro_batches

    def __str__(self) -> str:
        return (
            f'{self.total:,} images = {self.ranks:,} rank(s) x '
            f'{self.images_per_rank:,} images x {self.micro_batches:,} micro-batch(es)'
        )


def images_per_rank(dataloader: DataLoader) -> int:
    """Return the images of one micro-batch on one rank.

    Raises:
        ValueError: If there is none, or several.
    """
    size = dataloader.batch_size
    if size is None:
        size = getattr(dataloader.batch_sampler, 'batch_size', None)
    if not isinstance(size, int):
        found = 'no batch_size' if size is None else f'several batch sizes, {size}'
        raise ValueError(
            f'train_dataloader with {type(dataloader.batch_sampler).__name__} has '
            f'{found}; the images of an update can be counted only if all '
            'micro-batches have the same batch_size'
        )
    return size


def divide_total(total: int, dataloader: DataLoader) -> BatchSize:
    """Return how the ranks of this run divide a total batch into micro-batches.

    Raises:
        ValueError: If they cannot, or an epoch has fewer images.
    """
    ranks, images = get_world_size(), images_per_rank(dataloader)
    check_total_batch_size(total, ranks, images)
    batch_sampler = dataloader.batch_sampler
    if not is_endless(batch_sampler):
        sampler = getattr(batch_sampler, 'sampler', dataloader.sampler)
        check_epoch(total, len(sampler) * ranks)
    return BatchSize(ranks, images, total // (ranks * images))


def check_epoch(total: int, images: int) -> None:
    """Raise a ValueError if an update has more images than an epoch."""
    if images < total:
        raise ValueError(
            f'total_batch_size={total}, but an epoch has only {images} images; '
            'lower total_batch_size'
        )


def counts_updates(runner: Runner) -> bool:
    """Return whether an iteration of the loop is an update on a total batch."""
    return hasattr(runner.train_loop, 'batch')


def batch_size_of(runner: Runner) -> BatchSize:
    """Return the batch size of a run.

    A large-batch loop knows it. In MMEngine's own loops the optimizer wrapper
    accumulates.
    """
    if counts_updates(runner):
        return runner.train_loop.batch
    return BatchSize(
        ranks=get_world_size(),
        images_per_rank=images_per_rank(runner.train_dataloader),
        micro_batches=accumulative_counts(runner.optim_wrapper),
    )


def check_total_batch_size(total: int, ranks: int, images_per_rank: int) -> None:
    """Check that a total batch is made of whole micro-batches on every rank.

    Raises:
        TypeError: If the total is not an integer.
        ValueError: If it is not a positive multiple of ranks x images per rank.
    """
    check_number('total_batch_size', total, low=1, integer=True)
    unit = ranks * images_per_rank
    count, rest = divmod(total, unit)
    if rest:
        nearest = [n * unit for n in (count, count + 1) if n]
        raise ValueError(
            f'total_batch_size={total} is not a multiple of {ranks} rank(s) x '
            f'{images_per_rank} images per rank = {unit}; the nearest multiples are '
            f'{" and ".join(map(str, nearest))}. Or change train_dataloader.batch_size'
        )


def check_update_settings(
    loop: str, total_batch_size: int, counts: int, auto_scale_lr: Mapping | None
) -> None:
    """Check that nothing else accumulates or scales the learning rate of a loop.

    ``counts`` is ``accumulative_counts`` of the optimizer wrapper.

    Raises:
        ValueError: If the optimizer wrapper accumulates, or MMEngine scales the
            learning rate to another batch.
    """
    if counts != 1:
        raise ValueError(
            f'{loop} accumulates up to total_batch_size={total_batch_size} by itself; '
            f'remove optim_wrapper.accumulative_counts={counts}'
        )
    if auto_scale_lr and auto_scale_lr.get('enable'):
        raise ValueError(
            'auto_scale_lr.enable scales the learning rate to ranks x images per rank '
            f'and does not know total_batch_size={total_batch_size}: set it to False '
            "and use --auto-scale-lr of agvm_mm's tools/train.py, or set the learning "
            'rate for that batch'
        )


def describe_scaling(
    settings: Mapping | None,
    lr: float,
    batch: int,
    max_iters: int | None = None,
    accumulation: int = 1,
) -> str:
    """Say what fits a batch if the settings are those of another one, or return ''.

    Args:
        settings: ``auto_scale_lr`` of the config. It names the batch of the learning
            rate; nothing else tells whether that is scaled already.
        lr: Learning rate in the config.
        batch: Images of an update.
        max_iters: That of the loop. Defaults to None, a loop that counts epochs.
        accumulation: Iterations of the loop in one update. Defaults to 1.
    """
    settings = settings or {}
    base = settings.get('base_batch_size', batch)
    if base == batch or settings.get('enable'):  # MMEngine scales it.
        return ''
    factor, length = batch / base, ''
    if max_iters is not None:
        fits = round(max_iters * accumulation / factor)
        length = f', and max_iters={fits} as many images as {max_iters}'
    return (
        f'auto_scale_lr: lr={lr:g} is that of batch {base:,}. For {batch:,} the linear '
        f'rule gives {lr * factor:.4g} (--auto-scale-lr), the square root (Adam) '
        f'{lr * factor**0.5:.4g}{length}. If the config is for {batch:,} already, add '
        f'auto_scale_lr=dict(base_batch_size={batch})'
    )
