"""Variants of training, measured side by side by the check and the benchmarks."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from torch import Tensor

from agvm_mm.estimators import ESTIMATORS, VarianceEstimator, build_estimator
from gpu_check.engines import optimizer_for, wrap
from gpu_check.ranks import rank_device

# The learning rate is 0: a step does all its arithmetic, but the models stay the same,
# so all variants do the same work on the same images.
OPTIMIZERS = dict(
    SGD=dict(type='SGD', lr=0.0, weight_decay=1e-4, momentum=0.9),
    AdamW=dict(type='AdamW', lr=0.0, weight_decay=1e-4),
)

VARIANTS = ('plain', *ESTIMATORS)
# The distance of the ratios of two plain variants from 1 is the noise of the machine.
VARIANTS_AND_NOISE = ('plain', 'plain again', *ESTIMATORS)

Cell = tuple[str, bool]
"""A variant, and whether its updates are measured."""
PLAIN: Cell = ('plain', False)


class Trainer:
    """One variant of training: a wrapped model and its optimizer wrapper.

    One rank alone compares two micro-batches, with the same images.

    Args:
        model: Model on the CPU, not shared with other trainers.
        variant: Name of an estimator; or, if it begins with 'plain', an
            ``OptimWrapper`` and DDP's default reduction.
        optimizer: 'SGD' or 'AdamW'.
        engine: How the training is divided over the ranks. Defaults to 'ddp'.
        micro_batches: Of one update. Defaults to 2 on one rank, else 1.
    """

    def __init__(
        self,
        model: BaseModel,
        variant: str,
        optimizer: str = 'SGD',
        engine: str = 'ddp',
        micro_batches: int | None = None,
    ) -> None:
        if micro_batches is None:
            micro_batches = 2 if dist.get_world_size() == 1 else 1
        self.micro_batches = micro_batches
        self.measured = False
        self.estimator: VarianceEstimator | None = None
        device = rank_device()
        wrap_in_ddp = partial(
            MMDistributedDataParallel,
            device_ids=None if device.type == 'cpu' else [device.index],
            broadcast_buffers=False,
        )
        self.ddp = wrap(engine, model.to(device), wrap_in_ddp)
        settings = dict(
            type='OptimWrapper',
            optimizer=optimizer_for(engine, OPTIMIZERS[optimizer]),
            accumulative_counts=micro_batches,
        )
        plain = variant.startswith('plain')
        if not plain:
            settings['type'] = 'AGVMOptimWrapper'
        self.wrapper = build_optim_wrapper(model, settings)
        if not plain:
            agvm = self.wrapper.make_agvm(model)
            self.estimator = build_estimator(
                variant,
                agvm.preconditioner,
                agvm.parameters,
                self.ddp,
                accumulation=micro_batches,
            )
            # A schedule that is set by hand.
            switch = SimpleNamespace(
                is_active=lambda update: True,
                is_measured=lambda update: self.measured,
            )
            agvm.attach(self.estimator, switch)

    def update(self, batch: dict, measured: bool = False, seed: int = 0) -> None:
        """Run one optimizer update, measured or not; the seed is that of samplers."""
        self.measured = measured
        torch.manual_seed(seed)
        for _ in range(self.micro_batches):
            self.ddp.train_step(batch, self.wrapper)

    def gradient_bytes(self) -> int:
        """Return the bytes of the gradient."""
        return sum(p.nbytes for p in self.ddp.parameters() if p.requires_grad)


def build_trainers(
    build: Callable[[], BaseModel], variants: Iterable[str], *args: Any, **kwargs: Any
) -> dict[str, Trainer]:
    """Build the trainer of each variant, with a model for each."""
    return {variant: Trainer(build(), variant, *args, **kwargs) for variant in variants}


def updates_of(
    trainers: Mapping[str, Trainer], batch: dict, seed: int = 0
) -> dict[Cell, Callable[[], None]]:
    """Return a function for each cell that runs an update."""
    return {
        (variant, measured): partial(trainer.update, batch, measured, seed)
        for variant, trainer in trainers.items()
        for measured in ([False, True] if trainer.estimator else [False])
    }


def time_update(update: Callable[[], None]) -> tuple[float, float]:
    """Run an update on all ranks at once; return seconds of this one, clock and CPU.

    Other programs lengthen the first, but hardly the second.
    """
    dist.barrier()
    synchronize()
    start, start_cpu = time.perf_counter(), time.process_time()
    update()
    synchronize()
    return time.perf_counter() - start, time.process_time() - start_cpu


def reduced_bytes(trainer: Trainer, update: Callable[[], None]) -> dict[str, int]:
    """Run an update and count the bytes that this rank hands to all-reduces.

    Returns:
        Bytes of 'gradients', in whole reductions of the gradient, and of 'statistics',
        which are all other calls: sums for the variances, and averages of a detector's
        losses over the ranks. Both are 0 on one rank.
    """
    if dist.get_world_size() == 1:
        return dict(gradients=0, statistics=0)
    all_reduce, sizes = dist.all_reduce, []

    def recorded(tensor: Tensor, *args: Any, **kwargs: Any) -> dist.Work | None:
        sizes.append(tensor.nbytes)
        return all_reduce(tensor, *args, **kwargs)

    with mock.patch.object(dist, 'all_reduce', recorded):
        update()
    # Statistics are far smaller than the gradient.
    gradient = trainer.gradient_bytes()
    times, statistics = divmod(sum(sizes), gradient)
    # Without a communication hook, DDP reduces in C++.
    times += trainer.estimator is None
    return dict(gradients=times * gradient, statistics=statistics)


def synchronize() -> None:
    """Wait for the GPU if one is in use."""
    if rank_device().type == 'cuda':
        torch.cuda.synchronize()


def measure_cells(
    trainers: Mapping[str, Trainer],
    batch_of: Callable[[int], dict],
    *,
    rounds: int,
    warmup: int,
) -> dict[str, dict]:
    """Measure all cells on this rank, on the same images.

    Each round begins with another cell, and every other one goes backward: each cell
    comes equally often early and late, and not always after the same one.

    Returns:
        By cell, 'seconds' of each round after the warm-up as :func:`time_update`
        returns them, and the bytes 'reduced' in an update.
    """
    seconds: dict[Cell, list] = {}
    for turn in range(warmup + rounds):
        updates = updates_of(trainers, batch_of(turn), seed=turn)
        start = turn % len(updates)
        order = [*updates][start:] + [*updates][:start]
        for cell in order[::-1] if turn % 2 else order:
            seconds.setdefault(cell, []).append(time_update(updates[cell]))
        if dist.get_rank() == 0:
            print(f'\rround {turn + 1} of {warmup + rounds}', end=' ', file=sys.stderr)
    # Counting takes time, so it comes after the timed rounds.
    updates = updates_of(trainers, batch_of(0))
    return dict(
        seconds={cell: seconds[cell][warmup:] for cell in updates},
        reduced={
            cell: reduced_bytes(trainers[cell[0]], update)
            for cell, update in updates.items()
        },
    )


def merge_ranks(by_rank: Sequence[dict]) -> list[dict]:
    """Merge the results of :func:`measure_cells` from all ranks.

    Returns:
        For each cell: 'variant', 'measured', 'seconds' of the slowest rank, their
        'ratio' to the mean of the plain cells in the same round, 'cpu_ratio' of CPU
        time summed over the ranks, 'seconds_by_round', and 'bytes_reduced' by the
        first rank.
    """
    clock, cpu = {}, {}
    for cell in by_rank[0]['seconds']:
        times = np.array([found['seconds'][cell] for found in by_rank])
        clock[cell], cpu[cell] = times[..., 0].max(0), times[..., 1].sum(0)
    plain = [cell for cell in clock if cell[0].startswith('plain')]
    plain_clock, plain_cpu = (
        np.mean([times[cell] for cell in plain], axis=0) for times in (clock, cpu)
    )
    return [
        dict(
            variant=cell[0],
            measured=cell[1],
            seconds=quartiles(clock[cell]),
            ratio=quartiles(clock[cell] / plain_clock),
            cpu_ratio=quartiles(cpu[cell] / plain_cpu),
            seconds_by_round=clock[cell].round(5).tolist(),
            bytes_reduced=by_rank[0]['reduced'][cell],
        )
        for cell in clock
    ]


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Return 'median', 'quartile_1' and 'quartile_3'."""
    names = ('median', 'quartile_1', 'quartile_3')
    found = np.quantile(values, (0.5, 0.25, 0.75)).tolist()
    return dict(zip(names, found, strict=True))
