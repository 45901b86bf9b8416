"""Host synchronizations of an update with AGVM, against a plain one.

A detector waits for the GPU by itself, where it samples boxes for example. The small
network here does not, so torch can raise an error at the first wait.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch.distributed as dist

from gpu_check.counts import count_synchronizations, synchronization_error
from gpu_check.ranks import rank_device
from gpu_check.timing import AGVM_CELLS, Cell, variants_of
from gpu_check.toy import ToyDetector, make_images
from gpu_check.trainers import Trainer

PLAIN = ('plain', False)
CELLS = (PLAIN, *AGVM_CELLS)


def measure_synchronizations() -> dict[Cell, dict]:
    """Count the synchronizations of each cell on this rank.

    One rank alone compares two micro-batches.

    Returns:
        By cell, the 'count' (None on a CPU), and 'error', torch's message if the
        update is repeated with synchronizations forbidden. Measured updates are not
        repeated, nor are updates over gloo, which itself waits for copies to the host.
    """
    micro_batches = 2 if dist.get_world_size() == 1 else 1
    trainers = {
        variant: Trainer(ToyDetector(), variant, micro_batches=micro_batches)
        for variant in variants_of(CELLS)
    }
    # On the device already: copying images from the host is a synchronization.
    images = (part.to(rank_device()) for part in make_images(4, dist.get_rank()))
    batch = dict(zip(('inputs', 'data_samples'), map(list, images), strict=True))
    updates = {
        (variant, measured): partial(trainers[variant].update, batch, measured=measured)
        for variant, measured in CELLS
    }
    # DDP arranges its buckets, and CUDA its libraries, at the first updates.
    for update in [*updates.values()] * 2:
        update()
    found = {
        cell: dict(count=count_synchronizations(update), error=None)
        for cell, update in updates.items()
    }
    if dist.get_backend() == 'nccl':
        for cell, update in updates.items():
            if not cell[1]:
                found[cell]['error'] = synchronization_error(update)
    return found


def judge(by_rank: Sequence[Mapping[Cell, dict]]) -> list[str]:
    """Return the problems in results of :func:`measure_synchronizations`."""
    problems = []
    for rank, found in enumerate(by_rank):
        plain = found[PLAIN]
        if plain['count'] is None:
            continue
        for (variant, measured), own in found.items():
            kind = 'measured' if measured else 'unmeasured'
            extra, allowed = own['count'] - plain['count'], int(measured)
            if extra > allowed:
                problems.append(
                    f'rank {rank}: {extra} more than plain in an update of {variant}, '
                    f'{kind}; at most {allowed} expected'
                )
            if own['error'] and not plain['error']:
                problems.append(f'rank {rank}: {variant}, {kind}: {own["error"]}')
    return problems


def describe(found: Mapping[Cell, dict]) -> str:
    """Return the results of one rank in one line."""
    if found[PLAIN]['count'] is None:
        return 'not counted on a CPU'
    counts = ', '.join(
        f'{variant}{" measured" if measured else ""} {cell["count"]}'
        for (variant, measured), cell in found.items()
    )
    if found[PLAIN]['error']:
        return f'{counts}; the plain update raises an error, too'
    return counts
