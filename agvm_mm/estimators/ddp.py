"""Gradients that DistributedDataParallel reduces.

DDP reduces gradients bucket by bucket during the backward pass and hands each bucket to
a communication hook. At updates that are not measured the hook here does the same
all-reduce as DDP.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from agvm_mm.estimators.ranks import (
    GradientSource,
    RankEstimator,
    mean_operation,
)
from agvm_mm.estimators.reductions import as_real

COMPRESSION_HOOKS = dict(
    fp16_compress_hook=torch.float16, bf16_compress_hook=torch.bfloat16
)
"""Torch's communication hooks that compress the gradient, and the type they reduce."""


def check_compression(
    comm_hook: str, group: dist.ProcessGroup, device: torch.device
) -> None:
    """Check that the backend reduces compressed gradients, by reducing a number.

    All ranks have to call this. Without it the first update would fail.

    Raises:
        ValueError: If the backend cannot add numbers of this type.
    """
    dtype = COMPRESSION_HOOKS[comm_hook]
    try:
        dist.all_reduce(torch.zeros(1, dtype=dtype, device=device), group=group)
    except RuntimeError as error:
        others = [name for name in COMPRESSION_HOOKS if name != comm_hook]
        raise ValueError(
            f"comm_hook='{comm_hook}': the backend {dist.get_backend(group)} of torch "
            f'{torch.__version__} does not reduce {dtype} ({error}); try '
            f'{" or ".join(others)}, or remove it'
        ) from error


def average(tensor: Tensor, group: dist.ProcessGroup) -> Future:
    """Reduce a tensor to its mean over the ranks, in place."""
    operation = mean_operation(tensor, group)
    work = dist.all_reduce(tensor, op=operation, group=group, async_op=True)
    return work.get_future()


# DDP inspects the names and annotations of a hook's arguments.
def mean_hook(group, bucket):
    """Reduce a bucket to its mean over the ranks."""
    return average(bucket.buffer(), group).then(lambda future: future.value()[0])


class DDPGradients(GradientSource):
    """Source of the gradients of a DDP model, whose communication hook it is.

    With ZeRO-1 and Adam each rank measures the parameters that it steps.

    Args:
        model: The wrapped model.
        comm_hook: A key of :data:`COMPRESSION_HOOKS` to compress the mean gradient.
            Defaults to None, full precision.

    Raises:
        ValueError: If the backend cannot reduce the compressed type.
    """

    def __init__(
        self, model: DistributedDataParallel, comm_hook: str | None = None
    ) -> None:
        self.group = model.process_group
        self.copies = self.group.size()
        self._model = model
        self._reduce_mean = mean_hook
        if comm_hook is not None:
            check_compression(comm_hook, self.group, next(model.parameters()).device)
            self._reduce_mean = getattr(default_hooks, comm_hook)

    def connect(self, estimator: RankEstimator) -> None:
        """Register the hook.

        Raises:
            ValueError: If the model has a communication hook already.
        """
        self._estimator, preconditioner = estimator, estimator.preconditioner
        # One that was frozen after DDP was built is in no module.
        self._own = {p for p in estimator.parameters if preconditioner.has(p)}
        if preconditioner.is_divided:
            self.copies = 1
        try:
            self._model.register_comm_hook(None, self._hook)
        except RuntimeError as error:
            raise ValueError(
                'the model has a DDP communication hook already, and DDP accepts only '
                "one; ask for compression by VarianceSyncHook(comm_hook='...') with "
                f'one of {", ".join(COMPRESSION_HOOKS)}'
            ) from error

    # DDP inspects the names and annotations of these arguments.
    def _hook(self, state, bucket):
        if not self._estimator.measuring:
            return self._reduce_mean(self.group, bucket)
        return self.reduce_measured(bucket)

    def reduce_measured(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """Reduce a bucket at a measured update to its mean over the ranks."""
        estimator, flat = self._estimator, bucket.buffer()
        if not estimator.reduces_more:
            estimator.measure(*self.gradients_in(bucket, flat), None)
            return self._reduce_mean(self.group, bucket)
        second = estimator.second(flat)
        mean_future = self._reduce_mean(self.group, bucket)

        def measure(future: Future) -> Tensor:
            # On GPUs the stream of this callback waits, not the host.
            mean = mean_future.wait()
            if second.is_cuda:
                # The callback runs on a stream of its own.
                second.record_stream(torch.cuda.current_stream())
            compared = estimator.compared(second)
            parameters, means = self.gradients_in(bucket, mean)
            estimator.measure(parameters, self.gradients_in(bucket, compared)[1], means)
            return mean

        # torch.futures.collect_all would hide the streams from DDP, and the norms could
        # be read before they are complete.
        return average(second, self.group).then(measure)

    def measure_rest(self) -> None:
        """Measure the mean as a whole if no bucket was."""
        if not self._estimator.reduces_more:
            parameters = self._estimator.not_measured()
            self._estimator.measure(parameters, None, [p.grad for p in parameters])

    def gradients_in(
        self, bucket: dist.GradBucket, flat: Tensor
    ) -> tuple[list[nn.Parameter], list[Tensor]]:
        """Return the parameters in a bucket that this rank measures.

        Also return views of their gradients in a tensor with the layout of the bucket.
        """
        parameters, views, offset = [], [], 0
        for parameter in bucket.parameters():
            # In the memory format of its parameter, while bucket.gradients() of torch
            # 2.13 has another one, and of a complex one a wrong part of the bucket.
            like = torch.empty_like(as_real(parameter), device='meta')
            if parameter in self._own:
                start = flat.storage_offset() + offset
                parameters.append(parameter)
                views.append(flat.as_strided(like.shape, like.stride(), start))
            offset += like.numel()
        return parameters, views
