"""Variants of training that the check and the benchmarks compare."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.distributed as dist
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from torch import Tensor

from agvm_mm.estimators import VarianceEstimator, build_estimator
from gpu_check.ranks import rank_device

# The learning rate is 0: a step does all its arithmetic, but the models stay the same,
# so all variants do the same work on the same images.
OPTIMIZERS = dict(
    SGD=dict(type='SGD', lr=0.0, weight_decay=1e-4, momentum=0.9),
    AdamW=dict(type='AdamW', lr=0.0, weight_decay=1e-4),
)


class Switch:
    """Measurement schedule that is set by hand; mu is always active."""

    act = True
    measured = False

    def is_active(self, update: int) -> bool:
        """Return True."""
        return True

    def is_measured(self, update: int) -> bool:
        """Return the position of the switch."""
        return self.measured


class Trainer:
    """One variant of training: a model in DDP and its optimizer wrapper.

    Args:
        model: Model on the CPU, not shared with other trainers.
        variant: Name of an estimator; or, if it begins with 'plain', an
            ``OptimWrapper`` and DDP's default reduction.
        optimizer: 'SGD' or 'AdamW'.
        micro_batches: Micro-batches of one update, all with the same images.
    """

    def __init__(
        self,
        model: BaseModel,
        variant: str,
        optimizer: str = 'SGD',
        micro_batches: int = 1,
    ) -> None:
        self.micro_batches = micro_batches
        self.switch = Switch()
        self.estimator: VarianceEstimator | None = None
        self.ddp = to_ddp(model)
        settings = dict(
            type='OptimWrapper',
            optimizer=OPTIMIZERS[optimizer],
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
            agvm.attach(self.estimator, self.switch)

    def update(self, batch: dict, *, measured: bool = False, seed: int = 0) -> None:
        """Run one optimizer update.

        Args:
            batch: Images of this rank.
            measured: Whether AGVM measures at this update.
            seed: Seed of the samplers of boxes.
        """
        self.switch.measured = measured
        torch.manual_seed(seed)
        for _ in range(self.micro_batches):
            self.ddp.train_step(batch, self.wrapper)

    def time_update(
        self, batch: dict, *, measured: bool = False, seed: int = 0
    ) -> tuple[float, float]:
        """Run :meth:`update` on all ranks at once and time it on this one.

        Returns:
            Seconds of wall-clock time and of CPU time of all threads of this process.
            Other programs lengthen the first, but hardly the second.
        """
        dist.barrier()
        synchronize()
        start, start_cpu = time.perf_counter(), time.process_time()
        self.update(batch, measured=measured, seed=seed)
        synchronize()
        return time.perf_counter() - start, time.process_time() - start_cpu

    def reduced_bytes(self, batch: dict, *, measured: bool = False) -> dict[str, int]:
        """Run an update and count the bytes that this rank hands to all-reduces.

        Reductions in Python are recorded as calls of ``torch.distributed.all_reduce``.
        Without a communication hook, DDP reduces in C++; the sizes of its buckets are
        in its log.

        Returns:
            Bytes of 'gradients', which are reductions of whole buckets, and of
            'statistics', which are all other calls: sums for the variances, and
            averages of a detector's losses over the ranks. Both are 0 on one rank.
        """
        if dist.get_world_size() == 1:
            return dict(gradients=0, statistics=0)
        buckets = self.bucket_bytes()
        with record_reductions() as calls:
            self.update(batch, measured=measured)
        gradients = sum(size for size in calls if size in buckets)
        statistics = sum(calls) - gradients
        if self.estimator is None:
            gradients += sum(buckets)
        return dict(gradients=gradients, statistics=statistics)

    def bucket_bytes(self) -> list[int]:
        """Return the bytes of each of DDP's buckets, as rebuilt at the first update."""
        log = self.ddp._get_ddp_logging_data()
        sizes = log.get('rebuilt_bucket_sizes') or log['bucket_sizes']
        return [int(size) for size in sizes.split(',')]


def to_ddp(model: BaseModel) -> MMDistributedDataParallel:
    """Move a model to the device of this rank and wrap it in DDP."""
    device = rank_device()
    return MMDistributedDataParallel(
        model.to(device),
        device_ids=None if device.type == 'cpu' else [device.index],
        broadcast_buffers=False,
    )


def synchronize() -> None:
    """Wait for the GPU if one is in use."""
    if rank_device().type == 'cuda':
        torch.cuda.synchronize()


@contextmanager
def record_reductions() -> Iterator[list[int]]:
    """Record the bytes of each ``torch.distributed.all_reduce`` in a list."""
    sizes: list[int] = []
    all_reduce = dist.all_reduce

    def recorded(tensor: Tensor, *args, **kwargs) -> dist.Work | None:
        sizes.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args, **kwargs)

    with mock.patch.object(dist, 'all_reduce', recorded):
        yield sizes
