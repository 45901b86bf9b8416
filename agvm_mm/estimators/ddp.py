"""Several ranks: the replicas are the ranks of DistributedDataParallel.

DDP reduces gradients bucket by bucket during the backward pass and hands each bucket to
a communication hook. The estimators here are that hook. At updates that are not
measured it does the same all-reduce as DDP.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from agvm_mm.estimators.base import VarianceEstimator
from agvm_mm.estimators.preconditioner import Preconditioner
from agvm_mm.estimators.reductions import as_real, inner_products
from agvm_mm.estimators.statistics import (
    HalvesStatistics,
    ModuleStatistics,
    ReplicasStatistics,
)
from agvm_mm.method.variance import products_of_halves, split_into_halves


class Compression(NamedTuple):
    """A DDP communication hook that reduces the gradient in half precision."""

    hook: Callable
    dtype: torch.dtype


COMPRESSION_HOOKS = {
    'fp16_compress_hook': Compression(default_hooks.fp16_compress_hook, torch.float16),
    'bf16_compress_hook': Compression(default_hooks.bf16_compress_hook, torch.bfloat16),
}


def check_compression(
    comm_hook: str, group: dist.ProcessGroup, device: torch.device
) -> None:
    """Check that the backend reduces compressed gradients, by reducing a number.

    All ranks have to call this. Without it the first update would fail.

    Args:
        comm_hook: A key of :data:`COMPRESSION_HOOKS`.
        group: Process group of the ranks.
        device: Device of the gradients.

    Raises:
        ValueError: If the backend cannot add numbers of this type.
    """
    dtype = COMPRESSION_HOOKS[comm_hook].dtype
    try:
        dist.all_reduce(torch.zeros(1, dtype=dtype, device=device), group=group)
    except RuntimeError as error:
        others = [name for name in COMPRESSION_HOOKS if name != comm_hook]
        raise ValueError(
            f"comm_hook='{comm_hook}': the backend {dist.get_backend(group)} of torch "
            f'{torch.__version__} does not reduce {dtype} ({error}); try '
            f'{" or ".join(others)}, or remove it'
        ) from error


# DDP inspects the names and annotations of a hook's arguments.
def mean_hook(group, bucket):
    """Reduce a bucket to its mean over the ranks, in place, as DDP does."""
    buffer = bucket.buffer()
    if dist.get_backend(group) == 'nccl':
        operation = dist.ReduceOp.AVG
    else:
        buffer.div_(dist.get_world_size(group))
        operation = dist.ReduceOp.SUM
    work = dist.all_reduce(buffer, op=operation, group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


class Segment(NamedTuple):
    """Piece of a flat bucket that holds the gradient of one parameter."""

    row: int
    parameter: nn.Parameter
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, flat: Tensor) -> Tensor:
        """Return this piece as a view of a tensor with the layout of the bucket."""
        return flat.as_strided(
            self.size, self.stride, flat.storage_offset() + self.offset
        )


class DDPEstimator(VarianceEstimator):
    """Estimator that is the communication hook of a DDP model.

    Args:
        preconditioner: See :class:`VarianceEstimator`.
        by_module: See :class:`VarianceEstimator`.
        model: The wrapped model.
        comm_hook: A key of :data:`COMPRESSION_HOOKS` to compress the mean gradient.
            Defaults to None, full precision.

    Raises:
        ValueError: If the model has a communication hook already, or the backend
            cannot reduce the compressed type.
    """

    def __init__(
        self,
        preconditioner: Preconditioner,
        by_module: dict[str, list[nn.Parameter]],
        *,
        model: DistributedDataParallel,
        comm_hook: str | None = None,
    ) -> None:
        super().__init__(preconditioner, by_module)
        self._group = model.process_group
        self._ranks = dist.get_world_size(self._group)
        self._reduce_mean = mean_hook
        if comm_hook is not None:
            device = self.rows.parameters[0].device
            check_compression(comm_hook, self._group, device)
            self._reduce_mean = COMPRESSION_HOOKS[comm_hook].hook
        # By bucket, because reductions complete in a different order in every run.
        # One row per parameter, because DDP changes the layout of its buckets after the
        # first update, and a resumed run has its first update later.
        self._tables: dict[int, Tensor] = {}
        try:
            model.register_comm_hook(None, self._hook)
        except RuntimeError as error:
            raise ValueError(
                'the model has a DDP communication hook already, and DDP accepts only '
                "one; ask for compression by VarianceSyncHook(comm_hook='...') with "
                f'one of {", ".join(COMPRESSION_HOOKS)}'
            ) from error

    def start(
        self, passes: int, loss_scale: Tensor | None = None, *, images: float = 1
    ) -> None:
        super().start(passes, loss_scale, images=images)
        self._tables = {}

    # DDP inspects the names and annotations of these arguments.
    def _hook(self, state, bucket):
        if not self.measuring:
            return self._reduce_mean(self._group, bucket)
        table = self.new_table(bucket.buffer(), per_parameter=True)
        self._tables[bucket.index()] = table
        return self.reduce_measured(bucket, self._segments(bucket), table)

    @abstractmethod
    def reduce_measured(
        self, bucket: dist.GradBucket, segments: list[Segment], table: Tensor
    ) -> Future[Tensor]:
        """Reduce a bucket at a measured update.

        Args:
            bucket: Gradients of this rank.
            segments: Pieces of the bucket by parameter.
            table: Statistics of the bucket to add to; a row for each parameter of the
                network.

        Returns:
            The mean of the bucket over the ranks.
        """

    def _segments(self, bucket: dist.GradBucket) -> list[Segment]:
        segments, offset = [], 0
        for parameter, gradient in zip(
            bucket.parameters(), bucket.gradients(), strict=True
        ):
            # torch 2.13 gives a wrong part of the bucket as the gradient of a complex
            # parameter.
            layout = as_real(parameter) if parameter.is_complex() else gradient
            rows = self.rows.of(parameter)
            if rows is not None:  # Else frozen after DDP was built: in no module.
                # Elementwise rescaling needs the shape of the parameter, sums do not.
                shaped = self.preconditioner.elementwise_state
                size = tuple(layout.shape) if shaped else (layout.numel(),)
                stride = layout.stride() if shaped else (1,)
                segments.append(
                    Segment(rows.parameter, parameter, offset, size, stride)
                )
            offset += layout.numel()
        return segments

    def _reduced_table(self) -> Tensor:
        """Return the mean of all statistics over the ranks, a row per module.

        It is on the CPU and without the loss scale.

        A rank's table holds its own norms and products of reduced gradients. The latter
        are the same on all ranks, but only a reduction makes them equal to the last bit
        on every kind of device.
        """
        tables = list(self._tables.values())
        if not tables:
            tables = [self.new_table(self.rows.parameters[0], per_parameter=True)]
        self._tables = {}
        # Each row comes from one bucket, the others add 0.
        table = self.rows.sum_by_module(torch.stack(tables).sum(dim=0))
        dist.all_reduce(table, group=self._group)
        table /= self._ranks
        if not self.is_whole:  # A table holds products of two gradients.
            table /= self.total_weight**2
        return self.to_host(table)


class DDPHalves(DDPEstimator):
    """Compares the first half of the ranks with the second.

    A measured update reduces a second, signed copy of each bucket in addition to the
    mean. With an odd number of ranks the second half has one more. If the optimizer
    steps along the gradient itself, the table holds the products of the two reductions
    until the end and the halves are never formed.
    """

    statistics_type = HalvesStatistics

    def reduce_measured(
        self, bucket: dist.GradBucket, segments: list[Segment], table: Tensor
    ) -> Future[Tensor]:
        first, second = self._halves
        is_first = dist.get_rank(self._group) < first
        difference = bucket.buffer() * (1 / first if is_first else -1 / second)
        mean_future = self._reduce_mean(self._group, bucket)
        difference_future = dist.all_reduce(
            difference, group=self._group, async_op=True
        ).get_future()

        def add_statistics(future: Future) -> Tensor:
            # On GPUs the stream of this callback waits, not the host.
            mean = mean_future.wait()
            if difference.is_cuda:
                # The callback runs on a stream of its own.
                difference.record_stream(torch.cuda.current_stream())
            for segment in segments:
                self._add_segment(table, segment, mean, difference)
            return mean

        # torch.futures.collect_all would hide the streams from DDP, and the table could
        # be read before it is complete.
        return difference_future.then(add_statistics)

    def _add_segment(
        self, table: Tensor, segment: Segment, mean: Tensor, difference: Tensor
    ) -> None:
        row, parameter = table[segment.row], segment.parameter
        reduced = segment.of(mean), segment.of(difference)
        if not self.preconditioner.elementwise_state:
            row += inner_products(*reduced)
            return
        for block in self.preconditioner.blocks(parameter):
            halves = split_into_halves(
                *(part[block] for part in reduced), *self._halves
            )
            self.statistics.add_halves(row, parameter, block, *halves)

    @property
    def _halves(self) -> tuple[int, int]:
        """Number of ranks in each half."""
        first = self._ranks // 2
        return first, self._ranks - first

    def finish(self) -> dict[str, ModuleStatistics]:
        self.measuring = False
        table = self._reduced_table()
        if not self.preconditioner.elementwise_state:
            table = products_of_halves(table, *self._halves)
        return self.by_name(table, self._halves[0] / self._ranks)


class DDPReplicas(DDPEstimator):
    """Compares all ranks through the norms of their own gradients.

    A measured update reduces two more scalars per module and nothing else.
    """

    statistics_type = ReplicasStatistics

    def reduce_measured(
        self, bucket: dist.GradBucket, segments: list[Segment], table: Tensor
    ) -> Future[Tensor]:
        add_replica, add_mean = self.statistics.add_replica, self.statistics.add_mean
        buffer = bucket.buffer()
        for segment in segments:
            add_replica(table[segment.row], segment.parameter, segment.of(buffer))

        def add_statistics(future: Future) -> Tensor:
            mean = future.value()
            for segment in segments:
                add_mean(table[segment.row], segment.parameter, segment.of(mean))
            return mean

        return self._reduce_mean(self._group, bucket).then(add_statistics)

    def finish(self) -> dict[str, ModuleStatistics]:
        self.measuring = False
        return self.by_name(self._reduced_table(), self._ranks)
