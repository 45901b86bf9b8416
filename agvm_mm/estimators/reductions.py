"""Norms of many tensors that lose no precision, in few kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

# A single float32 sum over the millions of elements of a gradient has a relative error
# of 1e-3 on a CPU, sums over rows of this length 1e-8. GPUs sum in a tree anyway.
ROW = 1024
SMALL = 16 * ROW
"""Elements up to which a CPU needs no rows."""


def local(tensor: Tensor) -> Tensor:
    """Return the slice of a DTensor that this rank has, any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


def as_real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as pairs of reals, any other as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors in float32 or wider.

    Half precision is widened before it is multiplied: its squares overflow at 256 and
    vanish below 2e-4.
    """
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return |x| of each tensor, without dimensions, in float32 or wider."""
    tensors = widened(map(as_real, tensors))
    large = {
        index: norm_by_rows(tensor)
        for index, tensor in enumerate(tensors)
        if tensor.device.type == 'cpu' and tensor.numel() > SMALL
    }
    rest = [tensor for index, tensor in enumerate(tensors) if index not in large]
    found = iter(torch._foreach_norm(rest) if rest else [])
    return [large[i] if i in large else next(found) for i in range(len(tensors))]


def norm_by_rows(tensor: Tensor) -> Tensor:
    """Return |x| of a large tensor on a CPU."""
    flat = tensor.reshape(-1)
    whole = len(flat) // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1)
    parts = [torch.linalg.vector_norm(part) for part in (rows, flat[whole:])]
    return torch.hypot(*parts)
