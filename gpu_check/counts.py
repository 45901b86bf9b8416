"""Counts of an update: host synchronizations, kernels, operators, peak memory.

The waits for the GPU that AGVM adds are those of a small network: a detector itself
waits, for example where it samples boxes.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from gpu_check.ranks import rank_device
from gpu_check.toy import ToyDetector, make_images
from gpu_check.trainers import (
    PLAIN,
    VARIANTS,
    Cell,
    build_trainers,
    synchronize,
    updates_of,
)

# In torch's warnings about synchronizations.
SYNCHRONIZES = 'called a synchronizing CUDA operation'
# CUDA's functions that launch a kernel; their suffixes differ between releases.
LAUNCHES = ('cudaLaunchKernel', 'cuLaunchKernel')

Waits = Mapping[Cell, int | None]
"""Number of synchronizations of each cell on one rank; None on a CPU."""


def count_synchronizations(update: Callable[[], None]) -> int | None:
    """Run an update and count where the host waits for the GPU; None on a CPU.

    torch counts its own operators, not what NCCL or gloo do in their threads.
    """
    if rank_device().type != 'cuda':
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            update()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    return sum(SYNCHRONIZES in str(warning.message) for warning in caught)


def count_calls(update: Callable[[], None]) -> dict[str, int | None]:
    """Run an update under torch.profiler; see :func:`count_names`."""
    gpu = rank_device().type == 'cuda'
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu]
    with profile(activities=activities) as profiler:
        update()
        synchronize()
    return count_names(event.name for event in profiler.events())


def count_names(names: Iterable[str]) -> dict[str, int | None]:
    """Count the calls in a profile, from the names of its events.

    Returns:
        Number of 'operators' of torch, those inside others included, and of 'kernels'
        launched. Kernels are None if there were none: on a CPU, or where the driver
        does not let a user profile.
    """
    names = list(names)
    return dict(
        operators=sum(name.startswith('aten::') for name in names),
        kernels=sum(name.startswith(LAUNCHES) for name in names) or None,
    )


def device_peak(update: Callable[[], None]) -> int | None:
    """Run an update and return its peak memory on the GPU in bytes; None on a CPU.

    Without what was allocated before: parameters, moments and DDP's buckets.
    """
    if rank_device().type != 'cuda':
        return None
    synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    update()
    synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_waits() -> Waits:
    """Count the synchronizations of each cell on this rank."""
    trainers = build_trainers(ToyDetector, VARIANTS)
    # On the device already: copying images from the host is a synchronization.
    device = next(trainers['plain'].ddp.parameters()).device
    images = (part.to(device) for part in make_images(4, dist.get_rank()))
    batch = dict(zip(('inputs', 'data_samples'), map(list, images), strict=True))
    updates = updates_of(trainers, batch)
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
