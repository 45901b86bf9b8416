"""Several ranks: the replicas are the ranks of DistributedDataParallel.

DDP reduces gradients bucket by bucket while the backward pass still runs, and
hands each bucket to a communication hook. The estimators here are that hook. At
updates that are not measured it is the all-reduce that DDP would have done.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from agvm_mm.estimators.base import VarianceEstimator
from agvm_mm.estimators.statistics import HalvesStatistics, ReplicasStatistics
from agvm_mm.variance import (
    inner_products,
    products_of_halves,
    split_into_halves,
)

COMPRESSION_HOOKS = {
    'fp16_compress_hook': default_hooks.fp16_compress_hook,
    'bf16_compress_hook': default_hooks.bf16_compress_hook,
}
COMPRESSED_TO = {
    'fp16_compress_hook': torch.float16,
    'bf16_compress_hook': torch.bfloat16,
}


def check_compression(comm_hook: str, group, device: torch.device) -> None:
    """Try the reduction of a compressed number; otherwise the first update would fail.

    Args:
        comm_hook (str): A key of ``COMPRESSION_HOOKS``.
        group (ProcessGroup): Of the ranks, all of which have to call this.
        device (torch.device): Where gradients lie.

    Raises:
        ValueError: If the backend cannot add such numbers.
    """
    dtype = COMPRESSED_TO[comm_hook]
    try:
        dist.all_reduce(torch.zeros(1, dtype=dtype, device=device), group=group)
    except RuntimeError as error:
        others = [name for name in COMPRESSION_HOOKS if name != comm_hook]
        raise ValueError(
            f"comm_hook='{comm_hook}': the backend {dist.get_backend(group)} of torch "
            f'{torch.__version__} does not reduce {dtype} ({error}); try '
            f'{" or ".join(others)}, or leave it out'
        ) from error


def mean_hook(group, bucket):
    """DDP's own reduction: the mean over the ranks, in place."""
    buffer = bucket.buffer()
    if dist.get_backend(group) == 'nccl':
        operation = dist.ReduceOp.AVG
    else:
        buffer.div_(dist.get_world_size(group))
        operation = dist.ReduceOp.SUM
    work = dist.all_reduce(buffer, op=operation, group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


class Segment(NamedTuple):
    """The piece of a flat bucket that holds one parameter's gradient."""

    row: int
    parameter: nn.Parameter
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, flat: Tensor) -> Tensor:
        """This piece as a view of a tensor laid out as the bucket is."""
        return flat.as_strided(
            self.size, self.stride, flat.storage_offset() + self.offset
        )


class DDPEstimator(VarianceEstimator):
    """Registers itself as the one communication hook of a DDP model.

    Args:
        optimizer (Optimizer): See :class:`VarianceEstimator`.
        model (DistributedDataParallel): The wrapped model.
        comm_hook (str, optional): How the mean gradient is reduced instead of in
            full: 'fp16_compress_hook' or 'bf16_compress_hook'. Defaults to None.

    Raises:
        ValueError: If another communication hook is registered already, or the
            backend cannot reduce what it is compressed to.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: DistributedDataParallel,
        comm_hook: str | None = None,
    ) -> None:
        super().__init__(optimizer)
        self._group = model.process_group
        if comm_hook is not None:
            check_compression(comm_hook, self._group, self.parameters[0].device)
        self._ranks = dist.get_world_size(self._group)
        self._reduce_mean = COMPRESSION_HOOKS[comm_hook] if comm_hook else mean_hook
        self._measuring = False
        # By bucket: the order in which reductions complete is not the same on every
        # run. A row for each parameter: DDP lays its buckets out anew after the first
        # update, and a resumed run has its first update later.
        self._tables: dict[int, Tensor] = {}
        try:
            model.register_comm_hook(None, self._hook)
        except RuntimeError as error:
            raise ValueError(
                'the model has a DDP communication hook already, and DDP takes only '
                "one; ask for compression by VarianceSyncHook(comm_hook='...') with "
                f'one of {", ".join(COMPRESSION_HOOKS)}'
            ) from error

    def _start(self, micro_batches: int) -> bool:
        self._measuring = True
        self._tables = {}
        return True

    def after_backward(self, weight: float) -> None:
        """Nothing: the communication hook has seen the gradients."""

    # DDP looks at the names and annotations of these arguments.
    def _hook(self, state, bucket):
        if not self._measuring:
            return self._reduce_mean(self._group, bucket)
        table = self.new_table(bucket.buffer(), rows=len(self.parameters))
        self._tables[bucket.index()] = table
        return self.reduce_measured(bucket, self._segments(bucket), table)

    @abstractmethod
    def reduce_measured(self, bucket, segments: list[Segment], table: Tensor):
        """Reduce a bucket at a measured update.

        Args:
            bucket (GradBucket): This rank's gradients.
            segments (list[Segment]): The bucket's pieces by parameter.
            table (Tensor): The bucket's statistics, to be added to; a row for each
                parameter of the network.

        Returns:
            torch.futures.Future[Tensor]: The bucket's mean over the ranks.
        """

    def _segments(self, bucket) -> list[Segment]:
        start = bucket.buffer().storage_offset()
        segments = []
        for parameter, gradient in zip(
            bucket.parameters(), bucket.gradients(), strict=True
        ):
            row = self.parameter_index.get(id(parameter))
            if row is None:  # Frozen after DDP was built: in a bucket, in no module.
                continue
            # Rescaling elementwise takes the parameter's shape, sums do not.
            shaped = self.preconditioner.elementwise_state
            size = tuple(gradient.shape) if shaped else (gradient.numel(),)
            stride = gradient.stride() if shaped else (1,)
            offset = gradient.storage_offset() - start
            segments.append(Segment(row, parameter, offset, size, stride))
        return segments

    def _finished_table(self) -> Tensor:
        """The mean over the ranks of all buckets' statistics.

        Each rank's table holds what the rank knows: its own norms, and products of
        reduced gradients. The latter are the same everywhere, but only a reduction
        makes sure that it is so to the last bit, on every kind of device.
        """
        self._measuring = False
        tables = list(self._tables.values())
        if not tables:
            tables = [self.new_table(self.parameters[0], rows=len(self.parameters))]
        self._tables = {}
        # Each row comes from one bucket, the others add 0.
        by_parameter = torch.stack(tables).sum(dim=0)
        by_module = by_parameter.split(self.parameters_per_module)
        table = torch.stack([rows.sum(dim=0) for rows in by_module])
        dist.all_reduce(table, group=self._group)
        return table / self._ranks


class DDPHalves(HalvesStatistics, DDPEstimator):
    """Compares the first half of the ranks with the second.

    A measured update reduces a second, signed copy of each bucket beside the mean;
    with an odd number of ranks the second half has one more. Where the optimizer
    steps along the gradient itself, the table holds the products of what the two
    reductions deliver until the end; the halves are never formed.
    """

    def reduce_measured(self, bucket, segments: list[Segment], table: Tensor):
        first, second = self._halves
        is_first = dist.get_rank(self._group) < first
        difference = bucket.buffer() * (1 / first if is_first else -1 / second)
        mean_future = self._reduce_mean(self._group, bucket)
        difference_future = dist.all_reduce(
            difference, group=self._group, async_op=True
        ).get_future()

        def add_statistics(futures):
            mean = futures.value()[0].value()
            if difference.is_cuda:
                # The callback runs on a stream of its own.
                difference.record_stream(torch.cuda.current_stream())
            for segment in segments:
                row, parameter = table[segment.row], segment.parameter
                reduced = segment.of(mean), segment.of(difference)
                if not self.preconditioner.elementwise_state:
                    row += inner_products(*reduced)
                    continue
                for block in self.preconditioner.blocks(parameter):
                    halves = split_into_halves(
                        *(part[block] for part in reduced), first, second
                    )
                    self.add_halves(row, parameter, block, *halves)
            return mean

        # The mean first: on one stream the second one's end implies the first's.
        both = torch.futures.collect_all([mean_future, difference_future])
        return both.then(add_statistics)

    @property
    def _halves(self) -> tuple[int, int]:
        """Number of ranks in each half."""
        first = self._ranks // 2
        return first, self._ranks - first

    def finish(self) -> dict[str, float]:
        table = self._finished_table()
        if not self.preconditioner.elementwise_state:
            table = products_of_halves(table.cpu(), *self._halves)
        return self.variances(table)


class DDPReplicas(ReplicasStatistics, DDPEstimator):
    """Compares all ranks through the norms of their own gradients.

    A measured update reduces nothing more than two scalars for each module.
    """

    def reduce_measured(self, bucket, segments: list[Segment], table: Tensor):
        buffer = bucket.buffer()
        for segment in segments:
            self.add_replica(table[segment.row], segment.parameter, segment.of(buffer))

        def add_statistics(future):
            mean = future.value()
            for segment in segments:
                self.add_mean(table[segment.row], segment.parameter, segment.of(mean))
            return mean

        return self._reduce_mean(self._group, bucket).then(add_statistics)

    def finish(self) -> dict[str, float]:
        return self.variances(self._finished_table(), self._ranks)
