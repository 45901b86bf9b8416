"""Sums over large tensors that lose no precision, on CPUs and GPUs."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Elements that a CPU multiplies at a time. A single float32 sum over the millions of
# elements of a gradient has a relative error of 1e-4, sums over pieces of this length
# 1e-7. A piece of 256 KiB that is read three times also stays in the cache. GPUs sum in
# a tree anyway.
CPU_PIECE = 65536
# Bytes. The last bits of a dot product on a CPU depend on the alignment of its inputs,
# and a parameter may start anywhere in a flat bucket.
CPU_ALIGNMENT = 64


def as_real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as pairs of reals, any other as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield flat pieces of a tensor in float32 or wider.

    Half precision is widened before it is multiplied: its squares overflow at 256 and
    vanish below 2e-4.
    """
    flat = as_real(tensor).reshape(-1)
    wide = torch.promote_types(flat.dtype, torch.float32)
    if flat.device.type != 'cpu':
        yield flat.to(wide)
        return
    for part in flat.split(CPU_PIECE):
        part = part.to(wide)
        yield part.clone() if part.data_ptr() % CPU_ALIGNMENT else part


def inner_products(first: Tensor, second: Tensor) -> Tensor:
    """Return x . y, |x|^2 and |y|^2 of two tensors of the same shape, in one pass.

    Returns:
        Shape (3,), in float32 or wider.
    """
    products = [
        torch.dot(left, right)
        for x, y in zip(pieces(first), pieces(second), strict=True)
        for left, right in ((x, y), (x, x), (y, y))
    ]
    return total(torch.stack(products).view(-1, 3))


def squared_norm(tensor: Tensor) -> Tensor:
    """Return |x|^2 in float32 or wider."""
    return total([torch.dot(x, x) for x in pieces(tensor)])


def total(parts: Sequence[Tensor] | Tensor) -> Tensor:
    """Return the sum over the first dimension; a single part needs no kernel."""
    if len(parts) == 1:
        return parts[0]
    return (parts if isinstance(parts, Tensor) else torch.stack(parts)).sum(dim=0)
