"""Base class of all variance estimators."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agvm_mm.estimators.preconditioner import Preconditioner
from agvm_mm.method.noise_scale import (
    SignalAndNoise,
    signal_and_noise_from_halves,
    signal_and_noise_from_replicas,
)
from agvm_mm.method.variance import (
    products_of_halves,
    variance_from_halves,
    variance_from_replicas,
)


class ModuleStatistics(NamedTuple):
    """Statistics of the gradient of one module at one update.

    Attributes:
        variance: Phi; may be not finite.
        signal_and_noise: Estimates of |g|^2 and s^2.
    """

    variance: float
    signal_and_noise: SignalAndNoise


class VarianceEstimator(ABC):
    """Gathers statistics of the gradients during the backward passes of an update.

    :meth:`start` comes before the first backward pass of a measured update,
    :meth:`record` after each pass and :meth:`finish` before the step. At other updates
    nothing is called.

    Args:
        preconditioner: Turns a gradient into what the optimizer steps along.
        by_module: Parameters of each module, by its name.

    Attributes:
        parameters: All parameters, module by module.
        measuring: Whether a measured update is in progress.
        images: Images of the update over all ranks.
        total_weight: Sum of the weights of its backward passes so far. It ends below 1
            if fewer of them came than the loss is divided by.
    """

    def __init__(
        self, preconditioner: Preconditioner, by_module: dict[str, list[nn.Parameter]]
    ) -> None:
        self.preconditioner = preconditioner
        self.by_module = by_module
        self.parameters = [p for group in by_module.values() for p in group]
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

    def with_gradients(self) -> list[nn.Parameter]:
        """Return the parameters that have a gradient now."""
        return [p for p in self.parameters if p.grad is not None]

    def squares(self, columns: Sequence[Mapping[nn.Parameter, Tensor]]) -> Tensor:
        """Return squared norms, shape (columns, parameters), in float64.

        Args:
            columns: Norms by parameter for each column; 0 for other parameters.
        """
        zero = torch.zeros((), device=self.parameters[0].device)
        norms = [column.get(p, zero) for column in columns for p in self.parameters]
        return torch.stack(norms).view(len(columns), -1).double().square()

    def statistics_of_halves(
        self, squares: Tensor, shares: tuple[float, float]
    ) -> dict[str, ModuleStatistics]:
        """Return the statistics by module name, without modules that had no gradient.

        Args:
            squares: Squares of ``half_norms`` of the preconditioner, shape (3,
                parameters), in float64 on the CPU.
            shares: Shares of both halves in the gradient of the update.
        """
        wide = {torch.promote_types(p.dtype, torch.float32) for p in self.parameters}
        eps = max(torch.finfo(dtype).eps for dtype in wide)
        factors = (1, 1) if self.preconditioner.rescales else shares
        sums = products_of_halves(self._sum_by_module(squares), factors, eps)
        columns = sums.unbind(dim=1)
        share = shares[0] / sum(shares)
        return self._statistics(
            columns[1] + columns[2],
            variance_from_halves(*columns),
            *signal_and_noise_from_halves(*columns, self._images_that_came, share),
        )

    def statistics_of_replicas(
        self, squares: Tensor, replicas: int
    ) -> dict[str, ModuleStatistics]:
        """Return the statistics by module name, without modules that had no gradient.

        Args:
            squares: Mean of |g_r|^2 and |G|^2, shape (2, parameters), in float64 on the
                CPU.
            replicas: Their number.
        """
        columns = self._sum_by_module(squares).unbind(dim=1)
        return self._statistics(
            columns[0],
            variance_from_replicas(*columns, replicas),
            *signal_and_noise_from_replicas(*columns, replicas, self._images_that_came),
        )

    def _sum_by_module(self, squares: Tensor) -> Tensor:
        """Return the sums over the parameters of each module, shape (modules, any)."""
        sizes = [len(group) for group in self.by_module.values()]
        return torch.stack([rows.sum(dim=0) for rows in squares.T.split(sizes)])

    @property
    def _images_that_came(self) -> float:
        return self.images * self.total_weight

    def _statistics(
        self, sizes: Tensor, *columns: Tensor
    ) -> dict[str, ModuleStatistics]:
        rows = torch.stack(columns, dim=1).tolist()
        return {
            name: ModuleStatistics(variance, SignalAndNoise(*rest))
            for name, size, (variance, *rest) in zip(
                self.by_module, sizes.tolist(), rows, strict=True
            )
            if size
        }
