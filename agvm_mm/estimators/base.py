"""Base class of all variance estimators."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from agvm_mm.estimators.preconditioner import build_preconditioner
from agvm_mm.estimators.statistics import HalvesStatistics, ReplicasStatistics


class Rows(NamedTuple):
    """Rows of one parameter in statistics tables."""

    parameter: int
    module: int


class ModuleRows:
    """Row of each parameter in statistics tables.

    A table has one row per module, or one row per parameter, module by module.

    Args:
        optimizer: Its groups have the key 'module'. Modules are in the order in which
            they first appear there. Groups without a module (None) have no rows.

    Attributes:
        by_module: Parameters of each module, by its name.
        parameters: All parameters, module by module.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.by_module: dict[str, list[nn.Parameter]] = {}
        for group in optimizer.param_groups:
            if group['module'] is not None:
                self.by_module.setdefault(group['module'], []).extend(group['params'])
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

    The optimizer wrapper calls :meth:`start` before the first backward pass of a
    measured update, :meth:`after_backward` after each pass and :meth:`finish` before
    the step. At other updates it calls nothing. Subclasses implement :meth:`begin`,
    :meth:`after_backward` and :meth:`collect`.

    Args:
        optimizer: Its groups have the key 'module'.

    Attributes:
        statistics_type: Class of ``statistics``; a class attribute.
        statistics: Columns of the statistics table and the formula of Phi.
        preconditioner: Turns a gradient into what the optimizer steps along.
        rows: Row of each parameter in the table.
        measuring: Whether a measured update is in progress.
    """

    statistics_type: type[HalvesStatistics] | type[ReplicasStatistics]

    def __init__(self, optimizer: Optimizer) -> None:
        self.preconditioner = build_preconditioner(optimizer)
        self.statistics = self.statistics_type(self.preconditioner)
        self.rows = ModuleRows(optimizer)
        self.measuring = False

    def start(self, micro_batches: int, loss_scale: Tensor | None = None) -> bool:
        """Start a measured update.

        Args:
            micro_batches: Backward passes of this update.
            loss_scale: Factor of the gradients under mixed precision, on their device.
                Defaults to None, 1.

        Returns:
            False if an update of so few passes has nothing to compare. It is not
            measured then.
        """
        self.preconditioner.loss_scale = loss_scale
        self.measuring = self.begin(micro_batches)
        return self.measuring

    def finish(self) -> dict[str, float] | None:
        """Finish a measured update. This is its only host synchronization.

        Returns:
            Phi by module name, without modules that had no gradient; may be not
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
        """Record one backward pass.

        Args:
            weight: Share of this pass in the loss of the update; the shares of an
                update add up to 1. Gradients are multiplied by it.
        """

    @abstractmethod
    def collect(self) -> dict[str, float] | None:
        """Return Phi by module name, see :meth:`finish`."""

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

    def by_name(self, variances: Tensor, sizes: Tensor) -> dict[str, float]:
        """Return Phi by module name.

        Args:
            variances: Phi, one entry per module.
            sizes: A squared norm per module; modules with 0 had no gradient and are
                left out.
        """
        return {
            name: variance
            for name, variance, size in zip(
                self.rows.module_names, variances.tolist(), sizes.tolist(), strict=True
            )
            if size != 0
        }
