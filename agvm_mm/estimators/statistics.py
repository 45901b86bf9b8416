"""The two estimates of gradient variance as columns of a statistics table."""

from torch import Tensor

from agvm_mm.estimators.base import VarianceEstimator
from agvm_mm.variance import (
    inner_products,
    squared_norm,
    variance_from_halves,
    variance_from_replicas,
)


class HalvesStatistics(VarianceEstimator):
    """Columns G_A . G_B, |G_A|^2, |G_B|^2: the paper's estimate."""

    columns = 3

    def add_halves(
        self, row: Tensor, parameter, block, first: Tensor, second: Tensor
    ) -> None:
        """Add one block of G_A and G_B to its module's row."""
        halves = self.preconditioner.halves(parameter, block, first, second)
        row += inner_products(*halves)

    def variances(self, table: Tensor) -> dict[str, float]:
        """Phi by module name from a finished table."""
        dot, first_sq, second_sq = table.cpu().double().unbind(dim=1)
        return self.by_name(
            variance_from_halves(dot, first_sq, second_sq), first_sq + second_sq
        )


class ReplicasStatistics(VarianceEstimator):
    """Columns L = mean of |g_r|^2 and T = |G|^2."""

    columns = 2

    def add_replica(
        self, row: Tensor, parameter, gradient: Tensor, weight: float = 1.0
    ) -> None:
        """Add one piece of a replica's own gradient to its module's row."""
        row[0] += weight * self._squared_norm(parameter, gradient)

    def add_mean(self, row: Tensor, parameter, gradient: Tensor) -> None:
        """Add one piece of the mean gradient to its module's row."""
        row[1] += self._squared_norm(parameter, gradient)

    def _squared_norm(self, parameter, gradient: Tensor) -> Tensor:
        return sum(
            squared_norm(self.preconditioner.replica(parameter, block, gradient[block]))
            for block in self.preconditioner.blocks(parameter)
        )

    def variances(self, table: Tensor, replicas: int) -> dict[str, float]:
        """Phi by module name from a finished table."""
        local_sq, mean_sq = table.cpu().double().unbind(dim=1)
        return self.by_name(
            variance_from_replicas(local_sq, mean_sq, replicas), local_sq
        )
