"""One process: the replicas are the micro-batches of an accumulated update."""

from torch import Tensor

from agvm_mm.estimators.base import VarianceEstimator
from agvm_mm.estimators.statistics import HalvesStatistics, ReplicasStatistics


class MicroBatchHalves(VarianceEstimator):
    """Compares the first half of an update's micro-batches with the second.

    Holds one copy of the gradient from the middle of a measured update to its end.
    """

    statistics_type = HalvesStatistics

    def begin(self, micro_batches: int) -> bool:
        self._passes_left = micro_batches // 2
        self._first_weight = 0.0
        self._total_weight = 0.0
        self._first: list[Tensor | None] = []
        return micro_batches >= 2

    def after_backward(self, weight: float) -> None:
        self._total_weight += weight
        self._passes_left -= 1
        if self._passes_left == 0:
            self._first_weight = self._total_weight
            self._first = [
                None if parameter.grad is None else parameter.grad.clone()
                for parameter in self.rows.parameters
            ]

    def collect(self) -> dict[str, float]:
        second_weight = self._total_weight - self._first_weight
        table = None
        for parameter, first in zip(self.rows.parameters, self._first, strict=True):
            total = parameter.grad
            if total is None:
                continue
            if table is None:
                table = self.new_table(total)
            row = table[self.rows.of(parameter).module]
            for block in self.preconditioner.blocks(parameter):
                both = total[block]
                second = both if first is None else both - first[block]
                self.statistics.add_halves(
                    row,
                    parameter,
                    block,
                    (both - second) / self._first_weight,
                    second / second_weight,
                )
        self._first = []
        return {} if table is None else self.by_name(*self.statistics.variances(table))


class MicroBatchReplicas(VarianceEstimator):
    """Compares all micro-batches of an update through their norms.

    During a measured update each backward pass leaves its own gradient in
    ``parameter.grad``. The sum so far is kept aside, in the order in which autograd
    would have added it, and put back at the end. (A tensor hook could read the gradient
    of a pass without that copy, but it sees only a part of it where a shared head runs
    under activation checkpointing.)
    """

    statistics_type = ReplicasStatistics

    def begin(self, micro_batches: int) -> bool:
        self._replicas = micro_batches
        self._passes_left = micro_batches
        self._sums: list[Tensor | None] = [None] * len(self.rows.parameters)
        self._table: Tensor | None = None
        return micro_batches >= 2

    def after_backward(self, weight: float) -> None:
        self._passes_left -= 1
        for index, parameter in enumerate(self.rows.parameters):
            own, so_far = parameter.grad, self._sums[index]
            if own is not None:
                if self._table is None:
                    self._table = self.new_table(own)
                row = self._table[self.rows.of(parameter).module]
                # own is weight * g_r.
                self.statistics.add_replica(row, parameter, own, 1 / weight)
                so_far = own if so_far is None else so_far.add_(own)
            self._sums[index] = so_far
            parameter.grad = so_far if self._passes_left == 0 else None

    def collect(self) -> dict[str, float]:
        self._sums = []
        if self._table is None:
            return {}
        for parameter in self.rows.parameters:
            if parameter.grad is not None:
                row = self._table[self.rows.of(parameter).module]
                self.statistics.add_mean(row, parameter, parameter.grad)
        return self.by_name(*self.statistics.variances(self._table, self._replicas))
