"""What every estimator shares."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from agvm_mm.estimators.preconditioner import build_preconditioner


class VarianceEstimator(ABC):
    """Gathers statistics of the gradients while an update's backward passes run.

    The optimizer wrapper calls :meth:`start` before the first backward pass of a
    measured update, :meth:`after_backward` after each pass, and :meth:`finish`
    before the step. At other updates it calls nothing.

    Statistics are a table with a row for each module and a few columns: sums of
    inner products, on the gradients' device.

    Args:
        optimizer (Optimizer): Its groups carry the key 'module'. The modules come
            in the order in which they first appear there.
    """

    columns: int

    def __init__(self, optimizer: Optimizer) -> None:
        self.preconditioner = build_preconditioner(optimizer)
        by_module: dict[str, list[nn.Parameter]] = {}
        for group in optimizer.param_groups:
            if group['module'] is not None:
                by_module.setdefault(group['module'], []).extend(group['params'])
        self.module_names = list(by_module)
        self.parameters_per_module = [len(several) for several in by_module.values()]
        # Module by module.
        self.parameters = [p for several in by_module.values() for p in several]
        self.parameter_index = {id(p): row for row, p in enumerate(self.parameters)}
        self.module_index = {
            id(parameter): index
            for index, several in enumerate(by_module.values())
            for parameter in several
        }

    def new_table(self, like: Tensor, rows: int | None = None) -> Tensor:
        """Zeros on the device of a gradient, in float32 or wider.

        Args:
            like (Tensor): A gradient.
            rows (int, optional): Rows of the table. Defaults to None, one for each
                module.
        """
        wide = torch.promote_types(like.dtype, torch.float32)
        rows = len(self.module_names) if rows is None else rows
        return torch.zeros((rows, self.columns), dtype=wide, device=like.device)

    def start(self, micro_batches: int, loss_scale: Tensor | None = None) -> bool:
        """Begin a measured update.

        Args:
            micro_batches (int): Backward passes that this update consists of.
            loss_scale (Tensor, optional): What gradients are multiplied by under
                mixed precision, on their device. Defaults to None, 1.

        Returns:
            bool: False if an update of so many passes has nothing to compare; it
            is not measured then.
        """
        self.preconditioner.loss_scale = loss_scale
        return self._start(micro_batches)

    @abstractmethod
    def _start(self, micro_batches: int) -> bool:
        """:meth:`start` for one source of replicas."""

    @abstractmethod
    def after_backward(self, weight: float) -> None:
        """Take note of one backward pass.

        Args:
            weight (float): Share of this pass in the update's loss; the shares of
                one update add up to 1.
        """

    @abstractmethod
    def finish(self) -> dict[str, float]:
        """End a measured update; the one host synchronisation of it.

        Returns:
            dict[str, float]: Phi by module name, without modules that had no
            gradient; possibly not finite.
        """

    def by_name(self, variances: Tensor, sizes: Tensor) -> dict[str, float]:
        """Phi by module name.

        Args:
            variances (Tensor): Phi, one entry per module.
            sizes (Tensor): A squared norm for each module, 0 where there was no
                gradient.
        """
        return {
            name: variance
            for name, variance, size in zip(
                self.module_names, variances.tolist(), sizes.tolist(), strict=True
            )
            if size != 0
        }
