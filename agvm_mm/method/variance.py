"""Gradient variance of one module of a network, after AGVM.

A module has n replicas of its gradient, one from each data-parallel rank (or from each
micro-batch of an accumulated update): g_1 .. g_n, with mean G. Its gradient variance
Phi measures how little the replicas agree. It is 0 if they are equal and about 1 if
they are noise. Formulas: Xue et al., "Large-batch Optimization for Dense Visual
Predictions", NeurIPS 2022 (arXiv 2210.11078).

Everything here is plain arithmetic on tensors: no network, no optimizer, no
communication.
"""

import torch
from torch import Tensor


def variance_from_halves(dot: Tensor, first_sq: Tensor, second_sq: Tensor) -> Tensor:
    """Return Phi = 1 - cos(G_A, G_B), the paper's estimate.

    G_A and G_B are the mean gradients over the first and the second half of the
    replicas. The cosine with a zero vector counts as 0.

    Args:
        dot: G_A . G_B, any shape; one entry per module.
        first_sq: |G_A|^2, the same shape.
        second_sq: |G_B|^2, the same shape.

    Returns:
        Phi in [0, 2], the same shape; not finite where an input is not.
    """
    norms = first_sq.sqrt() * second_sq.sqrt()
    return 1 - torch.where(norms == 0, torch.zeros_like(dot), dot / norms)


def variance_from_replicas(local_sq: Tensor, mean_sq: Tensor, replicas: int) -> Tensor:
    """Return Phi = 2 (L - T) / ((n - 2) T + L), our estimate from two norms.

    It is 1 - cos(G_A, G_B) averaged over all ways to split the n replicas in half, with
    the averages taken in the numerator and the denominator of the cosine: for two
    halves of n/2 replicas, E[G_A . G_B] = (n T - L) / (n - 1) and
    E[|G_A|^2] = ((n - 2) T + L) / (n - 1). A module without any gradient (L = 0) counts
    as 1, as in :func:`variance_from_halves`.

    Args:
        local_sq: L, the mean over the replicas of |g_r|^2; one entry per module.
        mean_sq: T = |G|^2, the same shape.
        replicas: n, at least 2.

    Returns:
        Phi, the same shape; not finite where an input is not.
    """
    disagreement = 2 * (local_sq - mean_sq)
    total = (replicas - 2) * mean_sq + local_sq
    return torch.where(total == 0, torch.ones_like(total), disagreement / total)


def split_into_halves(
    mean: Tensor, difference: Tensor, first: int, second: int
) -> tuple[Tensor, Tensor]:
    """Return the mean gradients of both halves, given what two all-reduces deliver.

    Args:
        mean: G, the mean over all replicas.
        difference: G_A - G_B, which is the sum over the replicas of s_r g_r with
            s_r = 1/first in the first half and -1/second in the second.
        first: Number of replicas in the first half.
        second: Number of replicas in the second half.

    Returns:
        G_A and G_B, shaped like ``mean``.
    """
    replicas = first + second
    return (
        torch.add(mean, difference, alpha=second / replicas),
        torch.sub(mean, difference, alpha=first / replicas),
    )


def products_of_halves(products: Tensor, first: int, second: int) -> Tensor:
    """Return the products of G_A and G_B, given the products of the reductions.

    :func:`split_into_halves` is linear, so the three products follow from those of G
    and the difference d without forming G_A = G + b d and G_B = G - a d.

    Args:
        products: G . d, |G|^2 and |d|^2, shape (modules, 3).
        first: Number of replicas in the first half.
        second: Number of replicas in the second half.

    Returns:
        G_A . G_B, |G_A|^2 and |G_B|^2, shape (modules, 3), in float64. The square of a
        half that is smaller than the rounding error of the other's counts as 0.
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
