"""Gradient variance of one module of a network, after AGVM.

A module sees n replicas of its gradient, one from each data-parallel rank (or
from each micro-batch of an accumulated update): g_1 .. g_n, with mean G. Its
gradient variance Phi says how little the replicas agree; it is 0 where they are
equal and about 1 where they are noise. Formulas: Xue et al., "Large-batch
Optimization for Dense Visual Predictions", NeurIPS 2022 (arXiv 2210.11078).

Everything here is plain arithmetic on tensors: no network, no optimizer, no
communication.
"""

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


def inner_product(first: Tensor, second: Tensor) -> Tensor:
    """Dot product of two tensors of one shape, in float32 or wider.

    Half precision is widened before it is multiplied: its squares overflow at
    256 and vanish below 2e-4.
    """
    wide = torch.promote_types(first.dtype, torch.float32)
    return torch.dot(first.to(wide).reshape(-1), second.to(wide).reshape(-1))


def squared_norm(tensor: Tensor) -> Tensor:
    """|x|^2 in float32 or wider."""
    return inner_product(tensor, tensor)
