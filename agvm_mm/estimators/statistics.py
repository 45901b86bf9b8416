"""Columns of a statistics table, and Phi from their sums.

An estimator holds one of these. A row holds the sums of one module or parameter.
"""

from torch import Tensor, nn

from agvm_mm.estimators.preconditioner import Block, Preconditioner
from agvm_mm.estimators.reductions import inner_products, squared_norm
from agvm_mm.variance import variance_from_halves, variance_from_replicas


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

    def variances(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Return Phi and a squared norm of each row, in float64 on the CPU."""
        dot, first_sq, second_sq = table.cpu().double().unbind(dim=1)
        return variance_from_halves(dot, first_sq, second_sq), first_sq + second_sq


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
        row[0] += weight * self._squared_norm(parameter, gradient)

    def add_mean(self, row: Tensor, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Add the squared norm of the mean gradient to a row."""
        row[1] += self._squared_norm(parameter, gradient)

    def _squared_norm(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        preconditioner = self._preconditioner
        return sum(
            squared_norm(preconditioner.replica(parameter, block, gradient[block]))
            for block in preconditioner.blocks(parameter)
        )

    def variances(self, table: Tensor, replicas: int) -> tuple[Tensor, Tensor]:
        """Return Phi and a squared norm of each row, in float64 on the CPU."""
        local_sq, mean_sq = table.cpu().double().unbind(dim=1)
        return variance_from_replicas(local_sq, mean_sq, replicas), local_sq
