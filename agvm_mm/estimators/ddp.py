"""Several ranks: the replicas are the ranks of DistributedDataParallel.

DDP reduces gradients bucket by bucket during the backward pass and hands each bucket to
a communication hook. The estimators here are that hook. At updates that are not
measured it does the same all-reduce as DDP.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from agvm_mm.estimators.base import VarianceEstimator
from agvm_mm.estimators.preconditioner import Preconditioner
from agvm_mm.estimators.reductions import as_real
from agvm_mm.estimators.statistics import ModuleStatistics


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


class DDPEstimator(VarianceEstimator):
    """Estimator that is the communication hook of a DDP model.

    Args:
        preconditioner: See :class:`VarianceEstimator`.
        by_module: See :class:`VarianceEstimator`.
        model: The wrapped model.
        comm_hook: A key of :data:`COMPRESSION_HOOKS` to compress the mean gradient.
            Defaults to None, full precision.

    Attributes:
        columns: Norms that are kept of each parameter; a class attribute.

    Raises:
        ValueError: If the model has a communication hook already, or the backend
            cannot reduce the compressed type.
    """

    columns: int

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
        # By parameter: DDP changes the layout of its buckets after the first update,
        # and a resumed run has its first update later.
        self._norms: list[dict[int, Tensor]] = []
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
        self._norms = [{} for _ in range(self.columns)]

    # DDP inspects the names and annotations of these arguments.
    def _hook(self, state, bucket):
        if not self.measuring:
            return self._reduce_mean(self._group, bucket)
        return self.reduce_measured(bucket)

    @abstractmethod
    def reduce_measured(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """Reduce a bucket at a measured update, and keep the norms of its parameters.

        Args:
            bucket: Gradients of this rank.

        Returns:
            The mean of the bucket over the ranks.
        """

    def gradients_in(
        self, bucket: dist.GradBucket, flat: Tensor
    ) -> tuple[list[int], list[Tensor]]:
        """Return the gradients in a tensor with the layout of a bucket.

        Args:
            bucket: The bucket.
            flat: The tensor.

        Returns:
            Rows of the parameters that are in a module, and views of their gradients.
        """
        rows, views, offset = [], [], 0
        for parameter, gradient in zip(
            bucket.parameters(), bucket.gradients(), strict=True
        ):
            # torch 2.13 gives a wrong part of the bucket as the gradient of a complex
            # parameter.
            like = as_real(parameter) if parameter.is_complex() else gradient
            row = self.rows.of(parameter)
            if row is not None:  # Else frozen after DDP was built: in no module.
                start = flat.storage_offset() + offset
                rows.append(row)
                views.append(flat.as_strided(like.shape, like.stride(), start))
            offset += like.numel()
        return rows, views

    def keep(self, rows: Sequence[int], *columns: Sequence[Tensor]) -> None:
        """Keep the norms of some parameters, for each column."""
        for kept, own in zip(self._norms, columns, strict=True):
            kept.update(zip(rows, own, strict=True))

    def mean_over_ranks(self, table: Tensor) -> Tensor:
        """Return the mean of a table over the ranks, on the CPU.

        What follows from reduced gradients is the same on all ranks, but only a
        reduction makes it equal to the last bit on every kind of device.
        """
        dist.all_reduce(table, group=self._group)
        return table.cpu() / self._ranks


class DDPHalves(DDPEstimator):
    """Compares the first half of the ranks with the second.

    A measured update reduces a second, signed copy of each bucket in addition to the
    mean. With an odd number of ranks the second half has one more.
    """

    columns = 3

    def reduce_measured(self, bucket: dist.GradBucket) -> Future[Tensor]:
        first = self._ranks // 2
        second = self._ranks - first
        is_first = dist.get_rank(self._group) < first
        # The sum over the ranks is d = G_A - G_B.
        difference = bucket.buffer() * (1 / first if is_first else -1 / second)
        mean_future = self._reduce_mean(self._group, bucket)
        difference_future = dist.all_reduce(
            difference, group=self._group, async_op=True
        ).get_future()

        def add_norms(future: Future) -> Tensor:
            # On GPUs the stream of this callback waits, not the host.
            mean = mean_future.wait()
            if difference.is_cuda:
                # The callback runs on a stream of its own.
                difference.record_stream(torch.cuda.current_stream())
            # G is a G_A + b G_B, so a G_A is a (G + b d).
            a, b = self.shares
            difference.mul_(a * b).add_(mean, alpha=a)
            rows, halves = self.gradients_in(bucket, difference)
            _, means = self.gradients_in(bucket, mean)
            parameters = [self.rows.parameters[row] for row in rows]
            if rows:
                norms = self.preconditioner.half_norms
                self.keep(rows, *norms(parameters, halves, means, (a, b)))
            return mean

        # torch.futures.collect_all would hide the streams from DDP, and the norms could
        # be read before they are complete.
        return difference_future.then(add_norms)

    @property
    def shares(self) -> tuple[float, float]:
        """Share of the ranks in each half."""
        first = self._ranks // 2
        return first / self._ranks, 1 - first / self._ranks

    def finish(self) -> dict[str, ModuleStatistics]:
        self.measuring = False
        columns = torch.stack([self.column(each) for each in self._norms])
        norms = self.mean_over_ranks(columns) / self.total_weight
        return self.statistics_of_halves(norms, self.shares)


class DDPReplicas(DDPEstimator):
    """Compares all ranks through the norms of their own gradients.

    A measured update reduces two more numbers per parameter and nothing else.
    """

    columns = 1

    def reduce_measured(self, bucket: dist.GradBucket) -> Future[Tensor]:
        rows, gradients = self.gradients_in(bucket, bucket.buffer())
        parameters = [self.rows.parameters[row] for row in rows]
        if rows:
            norms = self.preconditioner.replica_norms(parameters, gradients)
            self.keep(rows, norms)
        return self._reduce_mean(self._group, bucket)

    def finish(self) -> dict[str, ModuleStatistics]:
        self.measuring = False
        rows = self.rows.with_gradients()
        parameters = [self.rows.parameters[row] for row in rows]
        means = {}
        if rows:
            norms = self.preconditioner.replica_norms(
                parameters, [p.grad for p in parameters]
            )
            means = dict(zip(rows, norms, strict=True))
        columns = [self.column(each) for each in (*self._norms, means)]
        squares = self.mean_over_ranks(torch.stack(columns).square())
        squares /= self.total_weight**2
        return self.statistics_of_replicas(squares, self._ranks)
