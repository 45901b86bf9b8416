"""Host synchronizations of an update with AGVM, against a plain one.

A detector itself waits for the GPU, for example where it samples boxes. The small
network here does not.
"""

from collections.abc import Mapping, Sequence

import torch.distributed as dist

from gpu_check.counts import count_synchronizations
from gpu_check.ranks import rank_device
from gpu_check.toy import ToyDetector, make_images
from gpu_check.trainers import PLAIN, VARIANTS, Cell, build_trainers, updates_of

Waits = Mapping[Cell, int | None]
"""Number of synchronizations of each cell on one rank; None on a CPU."""


def measure_waits() -> Waits:
    """Count the synchronizations of each cell on this rank."""
    # On the device already: copying images from the host is a synchronization.
    images = (part.to(rank_device()) for part in make_images(4, dist.get_rank()))
    batch = dict(zip(('inputs', 'data_samples'), map(list, images), strict=True))
    updates = updates_of(build_trainers(ToyDetector, VARIANTS), batch)
    # DDP arranges its buckets, and CUDA its libraries, at the first updates.
    for update in [*updates.values()] * 2:
        update()
    return {cell: count_synchronizations(update) for cell, update in updates.items()}


def judge_waits(by_rank: Sequence[Waits]) -> list[str]:
    """Return the problems: a measured update may wait once more than a plain one."""
    return [
        f'rank {rank}: {count - found[PLAIN]} more than plain in an update of '
        f'{variant}, {"measured" if measured else "unmeasured"}; at most '
        f'{int(measured)} expected'
        for rank, found in enumerate(by_rank)
        for (variant, measured), count in found.items()
        if count is not None and count - found[PLAIN] > measured
    ]


def describe_waits(found: Waits) -> str:
    """Return the results of one rank in one line."""
    if found[PLAIN] is None:
        return 'not counted on a CPU'
    return ', '.join(
        f'{variant}{" measured" if measured else ""} {count}'
        for (variant, measured), count in found.items()
    )
