"""Columns of a statistics table, and what follows from their sums.

An estimator holds one of these. A row holds the sums of one module or parameter.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from agvm_mm.estimators.preconditioner import Block, Preconditioner
from agvm_mm.estimators.reductions import inner_products, squared_norm, total
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


class HalvesStatistics:
    """Columns G_A . G_B, |G_A|^2 and |G_B|^2, for the paper's estimate.

    Args:
        preconditioner: Applied to both halves.
    """

    columns = 3

    def __init__(self, preconditioner: Preconditioner) -> None:
        self._preconditioner = preconditioner

    def add_halves(
        self,
        row: Tensor,
        parameter: nn.Parameter,
        block: Block,
        first: Tensor,
        second: Tensor,
    ) -> None:
        """Add one block of G_A and G_B to a row."""
        halves = self._preconditioner.halves(parameter, block, first, second)
        row += inner_products(*halves)

    def by_row(
        self, table: Tensor, images: float, first_share: float
    ) -> list[ModuleStatistics | None]:
        """Return the statistics of each row, None where there was no gradient.

        Args:
            table: The sums on the CPU, without a loss scale.
            images: Images of both halves.
            first_share: Share of the first half in them.
        """
        columns = table.double().unbind(dim=1)
        _, first_sq, second_sq = columns
        return _statistics(
            variance_from_halves(*columns),
            *signal_and_noise_from_halves(*columns, images, first_share),
            sizes=first_sq + second_sq,
        )


class ReplicasStatistics:
    """Columns L, the mean of |g_r|^2, and T = |G|^2, for our estimate.

    Args:
        preconditioner: Applied to each replica and to the mean.
    """

    columns = 2

    def __init__(self, preconditioner: Preconditioner) -> None:
        self._preconditioner = preconditioner

    def add_replica(
        self,
        row: Tensor,
        parameter: nn.Parameter,
        gradient: Tensor,
        weight: float = 1.0,
    ) -> None:
        """Add the squared norm of a replica's gradient, times a weight, to a row."""
        row[0].add_(self._squared_norm(parameter, gradient), alpha=weight)

    def add_mean(self, row: Tensor, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Add the squared norm of the mean gradient to a row."""
        row[1] += self._squared_norm(parameter, gradient)

    def _squared_norm(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        preconditioner = self._preconditioner
        return total(
            [
                squared_norm(preconditioner.replica(parameter, block, gradient[block]))
                for block in preconditioner.blocks(parameter)
            ]
        )

    def by_row(
        self, table: Tensor, images: float, replicas: int
    ) -> list[ModuleStatistics | None]:
        """Return the statistics of each row, None where there was no gradient.

        Args:
            table: The sums on the CPU, without a loss scale.
            images: Images of all replicas.
            replicas: Number of replicas.
        """
        columns = table.double().unbind(dim=1)
        return _statistics(
            variance_from_replicas(*columns, replicas),
            *signal_and_noise_from_replicas(*columns, replicas, images),
            sizes=columns[0],
        )


def _statistics(*columns: Tensor, sizes: Tensor) -> list[ModuleStatistics | None]:
    """Return a row of each column; None for rows of size 0, which had no gradient."""
    rows = torch.stack(columns, dim=1).tolist()
    return [
        ModuleStatistics(*row) if size else None
        for row, size in zip(rows, sizes.tolist(), strict=True)
    ]
