"""Images of one optimizer update."""

from dataclasses import dataclass

from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from agvm_mm.engine import accumulative_counts
from agvm_mm.preflight import check_images_per_rank, check_total_batch_size


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
            f'{self.total} images = {self.ranks} rank(s) x {self.images_per_rank} '
            f'images x {self.micro_batches} micro-batch(es)'
        )


def images_per_rank(dataloader: DataLoader) -> int:
    """Return the images of one micro-batch on one rank."""
    size = dataloader.batch_size
    if size is None:
        size = getattr(dataloader.batch_sampler, 'batch_size', None)
    check_images_per_rank(size, dataloader.batch_sampler)
    return size


def divide_total(total: int, dataloader: DataLoader) -> BatchSize:
    """Return how the ranks of this run divide a total batch.

    Args:
        total: Images of one update over all ranks.
        dataloader: Yields the micro-batches of this rank.
    """
    ranks, images = get_world_size(), images_per_rank(dataloader)
    check_total_batch_size(total, ranks, images)
    return BatchSize(ranks, images, total // (ranks * images))


def batch_size_of(runner: Runner) -> BatchSize:
    """Return the batch size of a run.

    A large-batch loop knows it. In MMEngine's own loops the optimizer wrapper
    accumulates.
    """
    batch = getattr(runner.train_loop, 'batch', None)
    if batch is not None:
        return batch
    return BatchSize(
        ranks=get_world_size(),
        images_per_rank=images_per_rank(runner.train_dataloader),
        micro_batches=accumulative_counts(runner.optim_wrapper),
    )
