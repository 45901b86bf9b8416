"""Statistics of the gradient of each module, from sums over its parameters."""

from typing import NamedTuple

import torch
from torch import Tensor

from agvm_mm.method.noise_scale import (
    SignalAndNoise,
    signal_and_noise_from_halves,
    signal_and_noise_from_replicas,
)
from agvm_mm.method.variance import variance_from_halves, variance_from_replicas


class ModuleStatistics(NamedTuple):
    """Statistics of the gradient of one module at one update.

    Attributes:
        variance: Phi; may be not finite.
        signal: Estimate of |g|^2, see :class:`.SignalAndNoise`.
        noise: Estimate of s^2.
    """

    variance: float
    signal: float
    noise: float

    @property
    def signal_and_noise(self) -> SignalAndNoise:
        """Signal and noise."""
        return SignalAndNoise(self.signal, self.noise)


def statistics_of_halves(
    sums: Tensor, images: float, first_share: float
) -> list[ModuleStatistics | None]:
    """Return the statistics of each module, None where there was no gradient.

    Args:
        sums: G_A . G_B, |G_A|^2 and |G_B|^2, shape (modules, 3), in float64 on the CPU.
        images: Images of both halves.
        first_share: Share of the first half in them.
    """
    columns = sums.unbind(dim=1)
    _, first_sq, second_sq = columns
    return _by_row(
        variance_from_halves(*columns),
        *signal_and_noise_from_halves(*columns, images, first_share),
        sizes=first_sq + second_sq,
    )


def statistics_of_replicas(
    sums: Tensor, images: float, replicas: int
) -> list[ModuleStatistics | None]:
    """Return the statistics of each module, None where there was no gradient.

    Args:
        sums: L, the mean of |g_r|^2, and T = |G|^2, shape (modules, 2), in float64 on
            the CPU.
        images: Images of all replicas.
        replicas: Number of replicas.
    """
    columns = sums.unbind(dim=1)
    return _by_row(
        variance_from_replicas(*columns, replicas),
        *signal_and_noise_from_replicas(*columns, replicas, images),
        sizes=columns[0],
    )


def _by_row(*columns: Tensor, sizes: Tensor) -> list[ModuleStatistics | None]:
    """Return a row of each column; None for rows of size 0, which had no gradient."""
    rows = torch.stack(columns, dim=1).tolist()
    return [
        ModuleStatistics(*row) if size else None
        for row, size in zip(rows, sizes.tolist(), strict=True)
    ]
