"""Several ranks: the replicas are the ranks of a model that reduces its gradients.

A source of gradients (:class:`.DDPGradients`, or that of another model wrapper) reduces
them part by part during the backward pass. At a measured update it asks an estimator
what else to reduce, and hands over what was reduced.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from agvm_mm.estimators.base import ModuleStatistics, VarianceEstimator
from agvm_mm.estimators.preconditioner import Preconditioner
from agvm_mm.estimators.reductions import widened


def mean_operation(tensor: Tensor, group: dist.ProcessGroup) -> dist.ReduceOp:
    """Return the operation that reduces a tensor to its mean over the ranks, as in DDP.

    A backend that can only add gets the tensor divided, in place.
    """
    if dist.get_backend(group) == 'nccl':
        return dist.ReduceOp.AVG
    tensor.div_(group.size())
    return dist.ReduceOp.SUM


class GradientSource(ABC):
    """Reduces the gradients of a model over ranks.

    Attributes:
        group: The ranks.
        copies: Ranks that measure the same tensor.
    """

    group: dist.ProcessGroup
    copies: int

    @abstractmethod
    def connect(self, estimator: 'RankEstimator') -> None:
        """Show all gradients to an estimator from now on."""

    @abstractmethod
    def measure_rest(self) -> None:
        """Hand over what the backward passes of a measured update left."""


class RankEstimator(VarianceEstimator):
    """Estimator over the ranks of a source of gradients.

    Attributes:
        columns: Norms that are measured of each parameter; a class attribute.
        source: Reduces the gradients.
        ranks: Number of ranks.
        kept: What the source keeps until the end of a measured update.
    """

    columns: int

    def __init__(
        self,
        preconditioner: Preconditioner,
        by_module: dict[str, list[nn.Parameter]],
        source: GradientSource,
    ) -> None:
        super().__init__(preconditioner, by_module)
        self.source = source
        self.ranks = source.group.size()
        self.kept: dict[str, Any] = {}
        # By parameter: DDP changes the layout of its buckets after the first update,
        # and a resumed run has its first update later.
        self._norms: list[dict[nn.Parameter, Tensor]] = []
        source.connect(self)

    def start(
        self, passes: int, loss_scale: Tensor | None = None, *, images: float = 1
    ) -> None:
        super().start(passes, loss_scale, images=images)
        self.kept = {}
        self._norms = [{} for _ in range(self.columns)]

    def cancel(self) -> None:
        super().cancel()
        self.kept = {}

    @property
    def reduces_more(self) -> bool:
        """Whether a measured update reduces more than the mean."""
        return True

    @abstractmethod
    def second(self, flat: Tensor) -> Tensor:
        """Return a new tensor to average besides the gradients of this rank."""

    def compared(self, second: Tensor) -> Tensor:
        """Return the tensor to compare with the mean gradient, made of the average.

        The average may be overwritten.
        """
        return second

    @abstractmethod
    def measure(
        self,
        parameters: Sequence[nn.Parameter],
        compared: Sequence[Tensor],
        means: Sequence[Tensor],
    ) -> None:
        """Keep norms of the compared tensors and the means of some parameters."""

    def not_measured(self) -> list[nn.Parameter]:
        """Return the parameters with a gradient whose last norm is not kept so far."""
        return [p for p in self.with_gradients() if p not in self._norms[-1]]

    def finish_squares(self) -> Tensor:
        """End a measured update, and return the squared norms of all ranks on the CPU.

        What follows from reduced gradients is the same on all ranks, but only a
        reduction makes it equal to the last bit on every kind of device.
        """
        self.source.measure_rest()
        self.cancel()
        squares = self.squares(self._norms)
        dist.all_reduce(squares, group=self.source.group)
        return squares.cpu() / (self.source.copies * self.total_weight**2)


class RankHalves(RankEstimator):
    """Compares the first half of the ranks with the second.

    A measured update reduces the gradient once more, with zeros in place of that of the
    second half. With an odd number of ranks the second half has one more.
    """

    columns = 3

    @property
    def shares(self) -> tuple[float, float]:
        """Share of the ranks in each half."""
        first = self.ranks // 2
        return first / self.ranks, 1 - first / self.ranks

    def second(self, flat: Tensor) -> Tensor:
        # The mean over the ranks is a G_A. It is reduced as G = a G_A + b G_B is, so
        # that their difference is 0 to the last bit where G_B is.
        is_first = dist.get_rank(self.source.group) < self.ranks // 2
        return flat.clone() if is_first else torch.zeros_like(flat)

    def measure(
        self,
        parameters: Sequence[nn.Parameter],
        compared: Sequence[Tensor],
        means: Sequence[Tensor],
    ) -> None:
        find = self.preconditioner.half_norms
        for column, norms in enumerate(find(parameters, compared, means, self.shares)):
            self._norms[column].update(zip(parameters, norms, strict=True))

    def finish(self) -> dict[str, ModuleStatistics]:
        return self.statistics_of_halves(self.finish_squares(), self.shares)


class RankReplicas(RankEstimator):
    """Compares all ranks through the norms of their own gradients.

    A measured update reduces two more numbers for each parameter and nothing else;
    where moments are divided, also the squares of the gradient: no rank can rescale its
    own.
    """

    columns = 2

    @property
    def reduces_more(self) -> bool:
        return self.preconditioner.is_divided

    def second(self, flat: Tensor) -> Tensor:
        (wide,) = widened([flat])
        return wide.square()

    def compared(self, second: Tensor) -> Tensor:
        # All replicas share v, so only the mean of their squares counts.
        return second.sqrt_()

    def measure(
        self,
        parameters: Sequence[nn.Parameter],
        compared: Sequence[Tensor] | None,
        means: Sequence[Tensor] | None,
    ) -> None:
        for column, tensors in enumerate((compared, means)):
            if tensors is not None:
                norms = self.preconditioner.replica_norms(parameters, tensors)
                self._norms[column].update(zip(parameters, norms, strict=True))

    def finish(self) -> dict[str, ModuleStatistics]:
        return self.statistics_of_replicas(self.finish_squares(), self.ranks)
