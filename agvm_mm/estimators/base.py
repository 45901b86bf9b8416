"""Base class of all variance estimators."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from agvm_mm.estimators.preconditioner import Preconditioner
from agvm_mm.estimators.statistics import (
    ModuleStatistics,
    statistics_of_halves,
    statistics_of_replicas,
)
from agvm_mm.method.variance import products_of_halves


class ModuleRows:
    """Row of each parameter in statistics, module by module.

    Args:
        by_module: Parameters of each module, by its name. Others have no rows.

    Attributes:
        by_module: See above.
        parameters: All parameters, module by module.
    """

    def __init__(self, by_module: dict[str, list[nn.Parameter]]) -> None:
        self.by_module = by_module
        self.parameters = [p for group in by_module.values() for p in group]
        self._rows = {id(p): row for row, p in enumerate(self.parameters)}

    def of(self, parameter: nn.Parameter) -> int | None:
        """Return the row of a parameter, or None if it is in no module."""
        return self._rows.get(id(parameter))

    def with_gradients(self) -> list[int]:
        """Return the rows of the parameters that have a gradient now."""
        return [row for row, p in enumerate(self.parameters) if p.grad is not None]

    def sum_by_module(self, by_parameter: Tensor) -> Tensor:
        """Return a table with a row per module from one with a row per parameter."""
        sizes = [len(group) for group in self.by_module.values()]
        return torch.stack([rows.sum(dim=0) for rows in by_parameter.split(sizes)])


class VarianceEstimator(ABC):
    """Gathers statistics of the gradients during the backward passes of an update.

    :meth:`start` comes before the first backward pass of a measured update,
    :meth:`record` after each pass and :meth:`finish` before the step. At other updates
    nothing is called.

    Args:
        preconditioner: Turns a gradient into what the optimizer steps along.
        by_module: Parameters of each module, by its name.

    Attributes:
        preconditioner: See above.
        rows: Row of each parameter in statistics.
        measuring: Whether a measured update is in progress.
        images: Images of the update over all ranks.
        total_weight: Sum of the weights of its backward passes so far. It ends below 1
            if fewer of them came than the loss is divided by.
    """

    def __init__(
        self, preconditioner: Preconditioner, by_module: dict[str, list[nn.Parameter]]
    ) -> None:
        self.preconditioner = preconditioner
        self.rows = ModuleRows(by_module)
        self.measuring = False
        self.images = 1
        self.total_weight = 0.0

    def start(
        self, passes: int, loss_scale: Tensor | None = None, *, images: float = 1
    ) -> None:
        """Forget the last measurement, and start one if there will be two replicas.

        Args:
            passes: Backward passes of this update.
            loss_scale: Factor of the gradients under mixed precision, on their device.
                Defaults to None, 1.
            images: Images of this update over all ranks. Defaults to 1: the noise is
                that of the gradient of the update.
        """
        self.preconditioner.loss_scale = loss_scale
        self.images = images
        self.total_weight = 0.0
        self.measuring = True

    def record(self, weight: float) -> None:
        """Take what the comparison needs from one backward pass.

        Args:
            weight: Share of this pass in the loss of the update; the shares of an
                update add up to 1. Gradients are multiplied by it.
        """
        self.total_weight += weight

    @abstractmethod
    def finish(self) -> dict[str, ModuleStatistics] | None:
        """Finish a measured update. This is its only host synchronization.

        Returns:
            Statistics by module name, without modules that had no gradient; may be not
            finite. None if there was nothing to compare. The same on every rank.
        """

    def cancel(self) -> None:
        """Stop measuring an update that does not end."""
        self.measuring = False

    def column(self, norms: Mapping[int, Tensor]) -> Tensor:
        """Return norms as a vector with an entry for each parameter.

        Args:
            norms: Norm by row; 0 for others.
        """
        zero = torch.zeros((), device=self.rows.parameters[0].device)
        rows = range(len(self.rows.parameters))
        return torch.stack([norms.get(row, zero) for row in rows])

    def statistics_of_halves(
        self, norms: Tensor, shares: tuple[float, float]
    ) -> dict[str, ModuleStatistics]:
        """Return the statistics by module name, without modules that had no gradient.

        Args:
            norms: Those of ``half_norms`` of the preconditioner, shape (3, parameters),
                on the CPU.
            shares: Shares of both halves in the gradient of the update.
        """
        eps = torch.finfo(norms.dtype).eps
        sums = self.rows.sum_by_module(norms.double().square().T)
        factors = (1, 1) if self.preconditioner.rescales else shares
        products = products_of_halves(sums, factors, eps)
        share = shares[0] / sum(shares)
        return self._by_name(
            statistics_of_halves(products, self._images_that_came, share)
        )

    def statistics_of_replicas(
        self, squares: Tensor, replicas: int
    ) -> dict[str, ModuleStatistics]:
        """Return the statistics by module name, without modules that had no gradient.

        Args:
            squares: Mean of |g_r|^2 and |G|^2, shape (2, parameters), on the CPU.
            replicas: Their number.
        """
        sums = self.rows.sum_by_module(squares.double().T)
        return self._by_name(
            statistics_of_replicas(sums, self._images_that_came, replicas)
        )

    @property
    def _images_that_came(self) -> float:
        return self.images * self.total_weight

    def _by_name(
        self, rows: Sequence[ModuleStatistics | None]
    ) -> dict[str, ModuleStatistics]:
        return {
            name: row
            for name, row in zip(self.rows.by_module, rows, strict=True)
            if row is not None
        }
