"""How many images an optimizer update is made of."""

from mmengine.dist import get_world_size
from torch.utils.data import DataLoader


def images_per_rank(dataloader: DataLoader) -> int:
    """Images of one micro-batch on one rank.

    Raises:
        ValueError: If the dataloader has no fixed batch size.
    """
    size = dataloader.batch_size
    if size is None:
        size = getattr(dataloader.batch_sampler, 'batch_size', None)
    if size is None:
        raise ValueError(
            'train_dataloader has no batch_size, nor has its batch_sampler '
            f'{type(dataloader.batch_sampler).__name__}; the number of images of an '
            'update cannot be counted'
        )
    return size


def micro_batches_per_update(runner) -> int:
    """Micro-batches that each rank runs for one full update.

    The large-batch loops say so themselves; elsewhere MMEngine accumulates.
    """
    from_loop = getattr(runner.train_dataloader, 'micro_batches', None)
    return from_loop or runner.optim_wrapper._accumulative_counts


def effective_batch_size(runner) -> int:
    """Images of one full update over all ranks."""
    return (
        get_world_size()
        * images_per_rank(runner.train_dataloader)
        * micro_batches_per_update(runner)
    )
