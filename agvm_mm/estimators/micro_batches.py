"""One process: the replicas are the micro-batches of an accumulated update."""

from torch import Tensor

from agvm_mm.estimators.statistics import HalvesStatistics, ReplicasStatistics


class MicroBatchHalves(HalvesStatistics):
    """Compares the first half of an update's micro-batches with the second.

    Holds one copy of the gradient from the middle of a measured update to its end.
    """

    def _start(self, micro_batches: int) -> bool:
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
                for parameter in self.parameters
            ]

    def finish(self) -> dict[str, float]:
        second_weight = self._total_weight - self._first_weight
        table = None
        for parameter, first in zip(self.parameters, self._first, strict=True):
            total = parameter.grad
            if total is None:
                continue
            if table is None:
                table = self.new_table(total)
            row = table[self.module_index[id(parameter)]]
            for block in self.preconditioner.blocks(parameter):
                both = total[block]
                second = both if first is None else both - first[block]
                self.add_halves(
                    row,
                    parameter,
                    block,
                    (both - second) / self._first_weight,
                    second / second_weight,
                )
        self._first = []
        return {} if table is None else self.variances(table)


class MicroBatchReplicas(ReplicasStatistics):
    """Compares all micro-batches of an update through their norms.

    During a measured update each backward pass leaves its own gradient in
    ``parameter.grad``; the sum so far is kept aside, added in the order in which
    autograd would have added it, and put back at the end. (Reading a pass's
    gradient in a tensor hook would spare that copy, but such a hook sees only a
    part of it where a shared head runs under activation checkpointing.)
    """

    def _start(self, micro_batches: int) -> bool:
        self._replicas = micro_batches
        self._passes_left = micro_batches
        self._sums: list[Tensor | None] = [None] * len(self.parameters)
        self._table: Tensor | None = None
        return micro_batches >= 2

    def after_backward(self, weight: float) -> None:
        self._passes_left -= 1
        for index, parameter in enumerate(self.parameters):
            own, so_far = parameter.grad, self._sums[index]
            if own is not None:
                if self._table is None:
                    self._table = self.new_table(own)
                # own is weight * g_r.
                self.add_replica(
                    self._table[self.module_index[id(parameter)]],
                    parameter,
                    own,
                    1 / weight,
                )
                so_far = own if so_far is None else so_far.add_(own)
            self._sums[index] = so_far
            parameter.grad = so_far if self._passes_left == 0 else None

    def finish(self) -> dict[str, float]:
        self._sums = []
        if self._table is None:
            return {}
        for parameter in self.parameters:
            if parameter.grad is not None:
                self.add_mean(
                    self._table[self.module_index[id(parameter)]],
                    parameter,
                    parameter.grad,
                )
        return self.variances(self._table, self._replicas)
