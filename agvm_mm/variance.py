"""Gradient variance of one module of a network, after AGVM.

A module sees n replicas of its gradient, one from each data-parallel rank (or
from each micro-batch of an accumulated update): g_1 .. g_n, with mean G. Its
gradient variance Phi says how little the replicas agree; it is 0 where they are
equal and about 1 where they are noise. Formulas: Xue et al., "Large-batch
Optimization for Dense Visual Predictions", NeurIPS 2022 (arXiv 2210.11078).

Everything here is plain arithmetic on tensors: no network, no optimizer, no
communication.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def variance_from_halves(dot: Tensor, first_sq: Tensor, second_sq: Tensor) -> Tensor:
    """Phi = 1 - cos(G_A, G_B), the paper's estimate.

    G_A and G_B are the mean gradients over the first and the second half of the
    replicas. The cosine with a zero vector counts as 0.

    Args:
        dot (Tensor): G_A . G_B, any shape; one entry per module.
        first_sq (Tensor): |G_A|^2, the same shape.
        second_sq (Tensor): |G_B|^2, the same shape.

    Returns:
        Tensor: Phi in [0, 2], the same shape; not finite where an input is not.
    """
    norms = first_sq.sqrt() * second_sq.sqrt()
    return 1 - torch.where(norms == 0, torch.zeros_like(dot), dot / norms)


def variance_from_replicas(local_sq: Tensor, mean_sq: Tensor, replicas: int) -> Tensor:
    """Phi = 2 (L - T) / ((n - 2) T + L), from two norms.

    It is 1 - cos(G_A, G_B) averaged over all ways to halve the n replicas, with
    the averages taken in the numerator and the denominator of the cosine: for
    two halves of n/2 replicas, E[G_A . G_B] = (n T - L) / (n - 1) and
    E[|G_A|^2] = ((n - 2) T + L) / (n - 1). A module without any gradient
    (L = 0) counts as 1, as in :func:`variance_from_halves`.

    Args:
        local_sq (Tensor): L, the mean over the replicas of |g_r|^2; one entry
            per module.
        mean_sq (Tensor): T = |G|^2, the same shape.
        replicas (int): n, at least 2.

    Returns:
        Tensor: Phi, the same shape; not finite where an input is not.
    """
    disagreement = 2 * (local_sq - mean_sq)
    total = (replicas - 2) * mean_sq + local_sq
    return torch.where(total == 0, torch.ones_like(total), disagreement / total)


def split_into_halves(
    mean: Tensor, difference: Tensor, first: int, second: int
) -> tuple[Tensor, Tensor]:
    """The two halves' mean gradients from what two all-reduces deliver.

    Args:
        mean (Tensor): G, the mean over all replicas.
        difference (Tensor): G_A - G_B, i.e. the sum over the replicas of s_r g_r
            with s_r = 1/first in the first half and -1/second in the second.
        first (int): Number of replicas in the first half.
        second (int): Number of replicas in the second half.

    Returns:
        tuple[Tensor, Tensor]: G_A and G_B, shaped as ``mean``.
    """
    replicas = first + second
    return (
        torch.add(mean, difference, alpha=second / replicas),
        torch.sub(mean, difference, alpha=first / replicas),
    )


def products_of_halves(products: Tensor, first: int, second: int) -> Tensor:
    """Products of the halves' mean gradients from those of the reductions.

    :func:`split_into_halves` is linear, so that G and the difference d need not be
    turned into G_A = G + b d and G_B = G - a d for the sake of three products.

    Args:
        products (Tensor): G . d, |G|^2 and |d|^2, shape (modules, 3); see
            :func:`split_into_halves`.
        first (int): Number of replicas in the first half.
        second (int): Number of replicas in the second half.

    Returns:
        Tensor: G_A . G_B, |G_A|^2 and |G_B|^2, shape (modules, 3), in float64. The
        square of a half that is smaller than what rounding left of the other's
        counts as 0.
    """
    dot, mean_sq, difference_sq = products.double().unbind(dim=1)
    a, b = first / (first + second), second / (first + second)
    first_sq = mean_sq + 2 * b * dot + b**2 * difference_sq
    second_sq = mean_sq - 2 * a * dot + a**2 * difference_sq
    rounding = 16 * torch.finfo(products.dtype).eps * (first_sq + second_sq)
    return torch.stack(
        [
            mean_sq + (b - a) * dot - a * b * difference_sq,
            torch.where(first_sq < rounding, 0.0, first_sq),
            torch.where(second_sq < rounding, 0.0, second_sq),
        ],
        dim=1,
    )


def adam_direction(gradient: Tensor, second_moment: Tensor, eps: float) -> Tensor:
    """The gradient as Adam's denominator rescales it, g / (sqrt(v) + eps).

    No first moment and no bias correction.

    Args:
        gradient (Tensor): g, any shape.
        second_moment (Tensor): v, broadcastable to ``gradient``.
        eps (float): Adam's own epsilon.
    """
    return gradient / (second_moment.sqrt() + eps)


def adam_second_moment(gradient: Tensor, previous: Tensor, beta2: float) -> Tensor:
    """Adam's v after one more gradient, beta2 v + (1 - beta2) g^2, elementwise."""
    return beta2 * previous + (1 - beta2) * gradient.square()


# Elements that a CPU multiplies at a time. One float32 sum over the millions of
# elements of a gradient loses 1e-4 of itself, sums over pieces of this length 1e-7;
# and a piece of 256 KiB that is read three times comes from the cache twice. GPUs sum
# in a tree of their own.
CPU_PIECE = 65536
# Bytes. The last bits of a CPU's dot product depend on where in memory it begins, and
# in a flat bucket a parameter may begin anywhere.
CPU_ALIGNMENT = 64


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor, flat, in pieces that sum without loss; in float32 or wider.

    Half precision is widened before it is multiplied: its squares overflow at
    256 and vanish below 2e-4.
    """
    flat = tensor.reshape(-1)
    wide = torch.promote_types(flat.dtype, torch.float32)
    if flat.device.type != 'cpu':
        yield flat.to(wide)
        return
    for part in flat.split(CPU_PIECE):
        part = part.to(wide)
        yield part.clone() if part.data_ptr() % CPU_ALIGNMENT else part


def inner_products(first: Tensor, second: Tensor) -> Tensor:
    """The products x . y, |x|^2 and |y|^2 of two tensors of one shape, in one pass.

    Returns:
        Tensor: The three numbers, in float32 or wider.
    """
    products = [
        torch.dot(left, right)
        for x, y in zip(pieces(first), pieces(second), strict=True)
        for left, right in ((x, y), (x, x), (y, y))
    ]
    return torch.stack(products).view(-1, 3).sum(dim=0)


def inner_product(first: Tensor, second: Tensor) -> Tensor:
    """Dot product of two tensors of one shape, in float32 or wider."""
    pairs = zip(pieces(first), pieces(second), strict=True)
    return torch.stack([torch.dot(x, y) for x, y in pairs]).sum()


def squared_norm(tensor: Tensor) -> Tensor:
    """|x|^2 in float32 or wider."""
    return torch.stack([torch.dot(x, x) for x in pieces(tensor)]).sum()
