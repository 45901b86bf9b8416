"""Memory of an estimator, tensor by tensor."""

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.utils import digit_version
from torch import Tensor
from torch.distributed import GradBucket
from torch.futures import Future
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from gpu_check.trainers import Trainer

# 2.13 reports when the memory of a tensor is freed. 2.1 does not, and crashes at exit
# when asked. Releases between 2.1 and 2.6 were not tried.
CAN_FOLLOW_STORAGES = digit_version(torch.__version__) >= digit_version('2.6')


class LiveBytes(TorchDispatchMode):
    """Context manager that follows the memory of all tensors created inside it.

    A new tensor counts until its storage is freed, also after the context. Several
    threads may be inside at a time.

    Attributes:
        live: Bytes of tensors that have not been freed.
        peak: Maximum of ``live`` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        # Freeing a tensor may interrupt the thread that counts.
        self._lock = threading.RLock()

    def add(self, count: int) -> None:
        """Add bytes, or subtract them if the count is negative."""
        with self._lock:
            self.live += count
            self.peak = max(self.peak, self.live)

    def __torch_dispatch__(
        self,
        func: Callable,
        types: Sequence[type],
        args: Sequence = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        known = {tensor.untyped_storage()._cdata for tensor in tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in tensors(result):
            storage = tensor.untyped_storage()
            # A view, or a tensor changed in place, is not new.
            if storage._cdata not in known:
                known.add(storage._cdata)
                self.add(storage.nbytes())
                weakref.finalize(storage, self.add, -storage.nbytes())
        return result


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors of nested containers."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def estimator_memory(trainer: Trainer, batch: dict) -> dict[str, int]:
    """Run a measured update and return the most memory that the estimator holds.

    Follows every tensor created inside the communication hook and inside the
    callbacks on its reductions. DDP's buckets and gradients are not included, nor is
    what gloo or NCCL allocate.

    Returns:
        Maximum of the estimator's 'own' bytes; maximum of the bytes of buckets
        'in_flight', which were handed to the hook and are not reduced yet; and
        'left_over', own bytes that were not freed after the update.
    """
    own, in_flight = LiveBytes(), LiveBytes()
    reduce_measured = trainer.estimator.source.reduce_measured
    # torch.futures.Future inherits it; work.get_future() returns this very class.
    future_type = torch._C.Future
    then = future_type.then

    def then_followed(future: Future, callback: Callable) -> Future:
        def followed(done: Future) -> Any:
            with own:
                return callback(done)

        return then(future, followed)

    def reduce_followed(bucket: GradBucket, *args: Any) -> Future:
        size = bucket.buffer().nbytes
        in_flight.add(size)
        with own:
            future = reduce_measured(bucket, *args)
        future.add_done_callback(lambda _: in_flight.add(-size))
        return future

    with (
        mock.patch.object(trainer.estimator.source, 'reduce_measured', reduce_followed),
        mock.patch.object(future_type, 'then', then_followed),
    ):
        trainer.update(batch, measured=True)
    # A thread of the backend may still have to release the last callback.
    deadline = time.monotonic() + 5
    while own.live and time.monotonic() < deadline:
        time.sleep(0.01)
    return dict(own=own.peak, in_flight=in_flight.peak, left_over=own.live)


def resident(key: str) -> int:
    """Return bytes of resident memory of this process on Linux.

    Args:
        key: 'VmRSS', now; or 'VmHWM', at most since :func:`reset_peak`.
    """
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def reset_peak() -> None:
    """Have the peak of the resident memory begin now."""
    Path('/proc/self/clear_refs').write_text('5')
