"""Counts of an update: host synchronizations, kernels, operators, peak memory."""

import warnings
from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

from gpu_check.ranks import rank_device
from gpu_check.trainers import synchronize

# In torch's warnings about synchronizations.
SYNCHRONIZES = 'called a synchronizing CUDA operation'
# CUDA's functions that launch a kernel; their suffixes differ between releases.
LAUNCHES = ('cudaLaunchKernel', 'cuLaunchKernel')


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
