"""Base class of all variance estimators."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agvm_mm.estimators.preconditioner import Preconditioner
from agvm_mm.estimators.reductions import as_real
from agvm_mm.estimators.statistics import (
    HalvesStatistics,
    ModuleStatistics,
    ReplicasStatistics,
)


class Rows(NamedTuple):
    """Rows of one parameter in statistics tables."""

    parameter: int
    module: int


class ModuleRows:
    """Row of each parameter in statistics tables.

    A table has one row per module, or one row per parameter, module by module.

    Args:
        by_module: Parameters of each module, by its name. Others have no rows.

    Attributes:
        by_module: See above.
        parameters: All parameters, module by module.
    """

    def __init__(self, by_module: dict[str, list[nn.Parameter]]) -> None:
        self.by_module = by_module
        self.parameters = [p for group in self.by_module.values() for p in group]
        modules = [
            module
            for module, group in enumerate(self.by_module.values())
            for _ in group
        ]
        self._rows = {
            id(parameter): Rows(row, module)
            for row, (parameter, module) in enumerate(
                zip(self.parameters, modules, strict=True)
            )
        }

    @property
    def module_names(self) -> list[str]:
        """Names of the modules, in the order of their rows."""
        return list(self.by_module)

    def of(self, parameter: nn.Parameter) -> Rows | None:
        """Return the rows of a parameter, or None if it is in no module."""
        return self._rows.get(id(parameter))

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
        statistics_type: Class of ``statistics``; a class attribute.
        statistics: Columns of the statistics table and the formulas on their sums.
        preconditioner: See above.
        rows: Row of each parameter in the table.
        measuring: Whether a measured update is in progress.
        images: Images of the update over all ranks.
        total_weight: Sum of the weights of its backward passes so far. It ends below 1
            if fewer of them came than the loss is divided by.
    """

    statistics_type: type[HalvesStatistics] | type[ReplicasStatistics]

    def __init__(
        self, preconditioner: Preconditioner, by_module: dict[str, list[nn.Parameter]]
    ) -> None:
        self.preconditioner = preconditioner
        self.statistics = self.statistics_type(preconditioner)
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

    def new_table(self, like: Tensor, *, per_parameter: bool = False) -> Tensor:
        """Return a table of zeros on the device of a gradient, in float32 or wider.

        Args:
            like: A gradient.
            per_parameter: Whether the table has a row per parameter instead of one
                per module.
        """
        wide = torch.promote_types(as_real(like).dtype, torch.float32)
        count = len(self.rows.parameters if per_parameter else self.rows.by_module)
        return torch.zeros(
            (count, self.statistics.columns), dtype=wide, device=like.device
        )

    @property
    def is_whole(self) -> bool:
        """Whether the weights add up to 1."""
        return math.isclose(self.total_weight, 1)

    def to_host(self, table: Tensor) -> Tensor:
        """Return a table on the CPU, without the loss scale."""
        return self.preconditioner.without_loss_scale(table).cpu()

    def by_name(self, table: Tensor, split: float) -> dict[str, ModuleStatistics]:
        """Return the statistics by module name, without modules that had no gradient.

        Args:
            table: The sums of this update from :meth:`to_host`, a row per module.
            split: How ``statistics`` are split into replicas: their number, or the
                share of the first half.
        """
        images = self.images * self.total_weight
        rows = self.statistics.by_row(table, images, split)
        return {
            name: row
            for name, row in zip(self.rows.module_names, rows, strict=True)
            if row is not None
        }
