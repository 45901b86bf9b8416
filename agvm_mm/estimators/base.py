"""Base class of all variance estimators."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from agvm_mm.estimators.preconditioner import build_preconditioner
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


def parameters_by_module(optimizer: Optimizer) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each module of an optimizer, by the module's name.

    Args:
        optimizer: Its groups have the key 'module'. Modules are in the order in which
            they first appear there. Groups without a module (None) are left out.
    """
    by_module: dict[str, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        if group['module'] is not None:
            by_module.setdefault(group['module'], []).extend(group['params'])
    return by_module


class VarianceEstimator(ABC):
    """Gathers statistics of the gradients during the backward passes of an update.

    The optimizer wrapper calls :meth:`start` before the first backward pass of a
    measured update, :meth:`record` after each pass and :meth:`finish` before the step.
    At other updates it calls nothing. Subclasses implement :meth:`begin`,
    :meth:`after_backward` and :meth:`collect`.

    Args:
        optimizer: Steps along the gradients.
        by_module: Parameters of each module, by its name. Defaults to None,
            :func:`parameters_by_module` of the optimizer.

    Attributes:
        statistics_type: Class of ``statistics``; a class attribute.
        statistics: Columns of the statistics table and the formulas on their sums.
        preconditioner: Turns a gradient into what the optimizer steps along.
        rows: Row of each parameter in the table.
        measuring: Whether a measured update is in progress.
        images: Images of the update over all ranks.
        total_weight: Sum of the weights of its backward passes so far. It ends below 1
            if fewer of them came than the loss is divided by.
    """

    statistics_type: type[HalvesStatistics] | type[ReplicasStatistics]

    def __init__(
        self,
        optimizer: Optimizer,
        by_module: dict[str, list[nn.Parameter]] | None = None,
    ) -> None:
        self.preconditioner = build_preconditioner(optimizer)
        self.statistics = self.statistics_type(self.preconditioner)
        if by_module is None:
            by_module = parameters_by_module(optimizer)
        self.rows = ModuleRows(by_module)
        self.measuring = False
        self.images = 1
        self.total_weight = 0.0

    def start(
        self, micro_batches: int, loss_scale: Tensor | None = None, *, images: int = 1
    ) -> bool:
        """Start a measured update.

        Args:
            micro_batches: Backward passes of this update.
            loss_scale: Factor of the gradients under mixed precision, on their device.
                Defaults to None, 1.
            images: Images of this update over all ranks. Defaults to 1: the noise is
                that of the gradient of the update.

        Returns:
            False if an update of so few passes has nothing to compare. It is not
            measured then.
        """
        self.preconditioner.loss_scale = loss_scale
        self.images = images
        self.total_weight = 0.0
        self.measuring = self.begin(micro_batches)
        return self.measuring

    def record(self, weight: float) -> None:
        """Record one backward pass of a measured update.

        Args:
            weight: Share of this pass in the loss of the update; the shares of an
                update add up to 1. Gradients are multiplied by it.
        """
        self.total_weight += weight
        self.after_backward(weight)

    def finish(self) -> dict[str, ModuleStatistics] | None:
        """Finish a measured update. This is its only host synchronization.

        Returns:
            Statistics by module name, without modules that had no gradient; may be not
            finite. None if there was nothing to compare. The same on every rank.
        """
        self.measuring = False
        return self.collect()

    def cancel(self) -> None:
        """Stop measuring an update that does not end."""
        self.measuring = False

    @abstractmethod
    def begin(self, micro_batches: int) -> bool:
        """Forget the last measurement; return whether there is something to compare.

        Args:
            micro_batches: Backward passes of this update.
        """

    @abstractmethod
    def after_backward(self, weight: float) -> None:
        """Take what the comparison needs from one backward pass, see :meth:`record`."""

    @abstractmethod
    def collect(self) -> dict[str, ModuleStatistics] | None:
        """Return the statistics by module name, see :meth:`finish`."""

    def new_table(self, like: Tensor, *, per_parameter: bool = False) -> Tensor:
        """Return a table of zeros on the device of a gradient, in float32 or wider.

        Args:
            like: A gradient.
            per_parameter: Whether the table has a row per parameter instead of one
                per module.
        """
        wide = torch.promote_types(like.dtype, torch.float32)
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
