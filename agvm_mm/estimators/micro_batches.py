"""One process: the replicas are the micro-batches of an accumulated update.

The number of backward passes that an update announces is a plan. What counts is what
came: a model may skip a micro-batch.
"""

from torch import Tensor

from agvm_mm.estimators.base import VarianceEstimator
from agvm_mm.estimators.statistics import (
    HalvesStatistics,
    ModuleStatistics,
    ReplicasStatistics,
)


class MicroBatchHalves(VarianceEstimator):
    """Compares the first half of an update's micro-batches with the second.

    Holds one copy of the gradient from the middle of a measured update to its end.
    """

    statistics_type = HalvesStatistics

    def start(
        self, passes: int, loss_scale: Tensor | None = None, *, images: float = 1
    ) -> None:
        super().start(passes, loss_scale, images=images)
        self.measuring = passes >= 2
        self._passes_left = passes // 2
        self._first_weight = 0.0
        self._first: list[Tensor | None] = []

    def record(self, weight: float) -> None:
        super().record(weight)
        self._passes_left -= 1
        if self._passes_left == 0:
            self._first_weight = self.total_weight
            self._first = [
                None if parameter.grad is None else parameter.grad.clone()
                for parameter in self.rows.parameters
            ]

    def finish(self) -> dict[str, ModuleStatistics] | None:
        self.measuring = False
        second_weight = self.total_weight - self._first_weight
        if self._passes_left >= 0:  # Nothing came after the first half.
            self._first = []
            return None
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
        if table is None:
            return {}
        return self.by_name(self.to_host(table), self._first_weight / self.total_weight)

    def cancel(self) -> None:
        super().cancel()
        self._first = []


class MicroBatchReplicas(VarianceEstimator):
    """Compares all micro-batches of an update through their norms.

    During a measured update each backward pass leaves its own gradient in
    ``parameter.grad``. The sum so far is kept aside, in the order in which autograd
    would have added it, and put back at the end. (A tensor hook could read the gradient
    of a pass without that copy, but it sees only a part of it where a shared head runs
    under activation checkpointing.)
    """

    statistics_type = ReplicasStatistics

    def start(
        self, passes: int, loss_scale: Tensor | None = None, *, images: float = 1
    ) -> None:
        super().start(passes, loss_scale, images=images)
        self.measuring = passes >= 2
        self._replicas = 0
        self._sums: list[Tensor | None] = [None] * len(self.rows.parameters)
        self._table: Tensor | None = None

    def record(self, weight: float) -> None:
        super().record(weight)
        self._replicas += 1
        for index, own in enumerate(self._take_gradients()):
            if own is None:
                continue
            parameter, so_far = self.rows.parameters[index], self._sums[index]
            if self._table is None:
                self._table = self.new_table(own)
            row = self._table[self.rows.of(parameter).module]
            # own is weight * g_r.
            self.statistics.add_replica(row, parameter, own, 1 / weight)
            self._sums[index] = own if so_far is None else so_far.add_(own)

    def finish(self) -> dict[str, ModuleStatistics] | None:
        self.measuring = False
        self._put_back()
        if self._replicas < 2:
            return None
        if self._table is None:
            return {}
        for parameter in self.rows.parameters:
            if parameter.grad is not None:
                row = self._table[self.rows.of(parameter).module]
                self.statistics.add_mean(row, parameter, parameter.grad)
        if not self.is_whole:
            self._table[:, 0] /= self.total_weight
            self._table[:, 1] /= self.total_weight**2
        return self.by_name(self.to_host(self._table), self._replicas)

    def cancel(self) -> None:
        if self.measuring:
            self._put_back()
        super().cancel()

    def _take_gradients(self) -> list[Tensor | None]:
        taken = []
        for parameter in self.rows.parameters:
            taken.append(parameter.grad)
            parameter.grad = None
        return taken

    def _put_back(self) -> None:
        for parameter, total in zip(self.rows.parameters, self._sums, strict=True):
            if parameter.grad is None:
                parameter.grad = total
            elif total is not None:  # A pass was interrupted.
                parameter.grad = total.add_(parameter.grad)
        self._sums = []
