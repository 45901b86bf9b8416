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


def products_of_halves(
    squares: Tensor, shares: tuple[float, float], eps: float
) -> Tensor:
    """Return the products of G_A and G_B, given norms.

    From |x + y|^2 = |x|^2 + 2 x . y + |y|^2.

    Args:
        squares: |a G_A|^2, |b G_B|^2 and |a G_A + b G_B|^2, shape (modules, 3), in
            float64.
        shares: a and b.
        eps: Relative rounding error of the gradients.

    Returns:
        G_A . G_B, |G_A|^2 and |G_B|^2, shape (modules, 3). The square of a half that is
        no more than the rounding error of both counts as 0.
    """
    (first_sq, second_sq, total_sq), (a, b) = squares.unbind(dim=1), shares
    rounding = (16 * eps) ** 2 * (first_sq + second_sq)
    return torch.stack(
        [
            (total_sq - first_sq - second_sq) / (2 * a * b),
            torch.where(first_sq < rounding, 0.0, first_sq / a**2),
            torch.where(second_sq < rounding, 0.0, second_sq / b**2),
        ],
        dim=1,
    )
