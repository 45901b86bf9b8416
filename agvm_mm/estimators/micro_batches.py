"""One process: the replicas are the micro-batches of an accumulated update.

The number of backward passes that an update announces is a plan. What counts is what
came: a model may skip a micro-batch.
"""

import torch
from torch import Tensor, nn

from agvm_mm.estimators.base import ModuleStatistics, VarianceEstimator


class MicroBatchHalves(VarianceEstimator):
    """Compares the first half of an update's micro-batches with the second.

    Holds one copy of the gradient from the middle of a measured update to its end.
    """

    def start(
        self, passes: int, loss_scale: Tensor | None = None, *, images: float = 1
    ) -> None:
        super().start(passes, loss_scale, images=images)
        self.measuring = passes >= 2
        self._passes_left = passes // 2
        self._first_weight = 0.0
        self._first: dict[nn.Parameter, Tensor] = {}

    def record(self, weight: float) -> None:
        super().record(weight)
        self._passes_left -= 1
        if self._passes_left == 0:
            self._first_weight = self.total_weight
            parameters = self.with_gradients()
            gradients = [p.grad for p in parameters]
            copies = torch._foreach_mul(gradients, 1) if gradients else []
            self._first = dict(zip(parameters, copies, strict=True))

    def finish(self) -> dict[str, ModuleStatistics] | None:
        self.measuring = False
        copies, self._first = self._first, {}
        if self._passes_left >= 0:  # Nothing came after the first half.
            return None
        parameters = self.with_gradients()
        if not parameters:
            return {}
        first = [copies[p] if p in copies else torch.zeros_like(p) for p in parameters]
        shares = self._first_weight, self.total_weight - self._first_weight
        found = self.preconditioner.half_norms(
            parameters, first, [p.grad for p in parameters], shares
        )
        columns = [dict(zip(parameters, each, strict=True)) for each in found]
        return self.statistics_of_halves(self.squares(columns).cpu(), shares)

    def cancel(self) -> None:
        super().cancel()
        self._first = {}


MOST_REPLICAS = 32
"""Replicas of an update with many micro-batches; more would only cost more."""


def passes_of_a_replica(passes: int) -> int:
    """Return how many micro-batches of an update are one replica.

    Replicas are of one size. If none divides the update into 8 to 32 replicas, each
    micro-batch is one.
    """
    for replicas in range(min(MOST_REPLICAS, passes), 7, -1):
        if passes % replicas == 0:
            return passes // replicas
    return 1


class MicroBatchReplicas(VarianceEstimator):
    """Compares all micro-batches of an update, or groups of them, through their norms.

    During a measured update each replica leaves its own gradient in
    ``parameter.grad``. The sum so far is kept aside, in the order in which autograd
    would have added the replicas, and put back at the end. (A tensor hook could read
    the gradient of a pass without that copy, but it sees only a part of it where a
    shared head runs under activation checkpointing.)
    """

    def start(
        self, passes: int, loss_scale: Tensor | None = None, *, images: float = 1
    ) -> None:
        super().start(passes, loss_scale, images=images)
        self.measuring = passes >= 2
        self._size = passes_of_a_replica(passes)
        self._replicas = self._passes = 0
        self._weight = 0.0
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._squares: Tensor | None = None

    def record(self, weight: float) -> None:
        super().record(weight)
        self._passes += 1
        self._weight += weight
        if self._passes == self._size:
            self._end_replica()

    def _end_replica(self) -> None:
        weight, self._weight, self._passes = self._weight, 0.0, 0
        self._replicas += 1
        own = {p: p.grad for p in self.with_gradients()}
        if not own:
            return
        # Each is weight * g_r.
        squares = self._squared_norms() / weight
        self._squares = squares if self._squares is None else self._squares + squares
        for parameter in own:
            parameter.grad = None
        both = [p for p in own if p in self._sums]
        if both:
            torch._foreach_add_([self._sums[p] for p in both], [own[p] for p in both])
        self._sums = own | self._sums

    def finish(self) -> dict[str, ModuleStatistics] | None:
        self.measuring = False
        if self._passes:  # A model that skipped some.
            self._end_replica()
        self._put_back()
        if self._replicas < 2:
            return None
        if self._squares is None:
            return {}
        total = self._squared_norms()
        squares = torch.stack(
            [self._squares / self.total_weight, total / self.total_weight**2]
        )
        return self.statistics_of_replicas(squares.cpu(), self._replicas)

    def cancel(self) -> None:
        if self.measuring:
            self._put_back()
        super().cancel()

    def _squared_norms(self) -> Tensor:
        """Return |g|^2 of all parameters, of which some have a gradient now."""
        parameters = self.with_gradients()
        gradients = [p.grad for p in parameters]
        norms = self.preconditioner.replica_norms(parameters, gradients)
        return self.squares([dict(zip(parameters, norms, strict=True))])[0]

    def _put_back(self) -> None:
        for parameter, total in self._sums.items():
            if parameter.grad is None:
                parameter.grad = total
            else:  # A pass was interrupted.
                parameter.grad = total.add_(parameter.grad)
        self._sums = {}
