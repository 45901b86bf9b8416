"""Rescaling of gradients, as the optimizer does it before it steps.

SGD steps along the gradient itself. Adam and AdamW rescale it elementwise, and AGVM
measures the variance of the rescaled gradient.
"""

from collections.abc import Callable, Iterator
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from agvm_mm.estimators.reductions import CPU_PIECE, as_real

# An index into a parameter: a range of its first dimension, or all of it.
Block = slice | EllipsisType
# Elements that a GPU rescales at a time, 16 MiB in float32: few kernels, and no copies
# as large as a bucket.
GPU_PIECE = 2**22


def adam_direction(gradient: Tensor, second_moment: Tensor, eps: float) -> Tensor:
    """Return g / (sqrt(v) + eps), the gradient rescaled by Adam's denominator.

    There is no first moment and no bias correction.

    Args:
        gradient: g, any shape.
        second_moment: v, broadcastable to ``gradient``.
        eps: Adam's own epsilon.
    """
    return gradient / (second_moment.sqrt() + eps)


def adam_second_moment(gradient: Tensor, previous: Tensor, beta2: float) -> Tensor:
    """Return beta2 v + (1 - beta2) g^2, Adam's v after one more gradient."""
    return beta2 * previous + (1 - beta2) * gradient.square()


class IdentityPreconditioner:
    """SGD: the variance is measured on the gradient itself.

    A loss scale is divided out of the sums, not of all gradients.
    """

    elementwise_state = False
    loss_scale: Tensor | None = None

    def without_loss_scale(self, products: Tensor) -> Tensor:
        """Return products of two gradients without the square of the loss scale."""
        if self.loss_scale is None:
            return products
        return products / self.loss_scale.square()

    def blocks(self, parameter: nn.Parameter) -> Iterator[Block]:
        """Yield the whole parameter as one block: nothing is copied."""
        yield ...

    def halves(
        self, parameter: nn.Parameter, block: Block, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return G_A and G_B unchanged."""
        return first, second

    def replica(
        self, parameter: nn.Parameter, block: Block, gradient: Tensor
    ) -> Tensor:
        """Return g_r unchanged."""
        return gradient


class AdamPreconditioner:
    """Adam, AdamW: the gradient is divided by sqrt(v) + eps first.

    v is the optimizer's ``exp_avg_sq`` from before this update, 0 at the first one.
    Each of two halves updates v with its own gradient. Replicas share v as it is, so
    their mean is rescaled like each of them. With ``amsgrad`` the largest v so far,
    ``max_exp_avg_sq``, takes the place of v.

    Args:
        optimizer: An Adam or AdamW.
    """

    # The optimizer keeps a v for each parameter, so parameters cannot be treated as
    # one flat vector.
    elementwise_state = True
    # The optimizer's v belongs to gradients without the loss scale.
    loss_scale: Tensor | None = None

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        # By index: resuming replaces the group dicts.
        self._group_of = {
            id(parameter): index
            for index, group in enumerate(optimizer.param_groups)
            for parameter in group['params']
        }

    def blocks(self, parameter: nn.Parameter) -> Iterator[Block]:
        """Yield ranges of rows that fit the cache while they are copied."""
        if parameter.dim() == 0 or parameter.numel() == 0:
            yield ...
            return
        piece = CPU_PIECE if parameter.device.type == 'cpu' else GPU_PIECE
        rows = max(1, piece * len(parameter) // parameter.numel())
        for start in range(0, len(parameter), rows):
            yield slice(start, start + rows)

    def without_loss_scale(self, products: Tensor) -> Tensor:
        """Return products of rescaled gradients, which have no loss scale."""
        return products

    def _group(self, parameter: nn.Parameter) -> dict[str, Any]:
        return self._optimizer.param_groups[self._group_of[id(parameter)]]

    def _moment(self, parameter: nn.Parameter, block: Block, name: str) -> Tensor:
        moment = self._optimizer.state.get(parameter, {}).get(name)
        if moment is None:
            moment = parameter.new_zeros(()).expand_as(parameter)
        return as_real(moment[block])

    def _unscaled(self, gradient: Tensor) -> Tensor:
        # torch's Adam treats a complex number as two reals.
        gradient = as_real(gradient)
        if self.loss_scale is None:
            return gradient
        # In float32 or wider: a gradient that was scaled up may vanish in half
        # precision.
        wide = torch.promote_types(gradient.dtype, torch.float32)
        return gradient.to(wide) / self.loss_scale

    def halves(
        self, parameter: nn.Parameter, block: Block, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return G_h / (sqrt(beta2 v + (1 - beta2) G_h^2) + eps) for both halves h.

        Args:
            parameter: The parameter.
            block: One of its :meth:`blocks`.
            first: G_A of that block.
            second: G_B of that block.
        """
        group = self._group(parameter)
        previous = self._moment(parameter, block, 'exp_avg_sq')
        directions = []
        for half in (self._unscaled(first), self._unscaled(second)):
            moment = adam_second_moment(half, previous, group['betas'][1])
            if group.get('amsgrad'):
                largest = self._moment(parameter, block, 'max_exp_avg_sq')
                moment = torch.maximum(largest, moment)
            directions.append(adam_direction(half, moment, group['eps']))
        return tuple(directions)

    def replica(
        self, parameter: nn.Parameter, block: Block, gradient: Tensor
    ) -> Tensor:
        """Return g_r / (sqrt(v) + eps) of a block."""
        group = self._group(parameter)
        name = 'max_exp_avg_sq' if group.get('amsgrad') else 'exp_avg_sq'
        moment = self._moment(parameter, block, name)
        return adam_direction(self._unscaled(gradient), moment, group['eps'])


Preconditioner = IdentityPreconditioner | AdamPreconditioner

# Subclasses count; the first match wins.
PRECONDITIONERS: dict[type[Optimizer], Callable[[Optimizer], Preconditioner]] = {
    torch.optim.AdamW: AdamPreconditioner,
    torch.optim.Adam: AdamPreconditioner,
    torch.optim.SGD: lambda optimizer: IdentityPreconditioner(),
}


def build_preconditioner(
    optimizer: Optimizer, *, measures_only: bool = False
) -> Preconditioner:
    """Build the preconditioner of an optimizer.

    Args:
        optimizer: Steps along the gradients.
        measures_only: Whether nothing follows from the variance. Of an optimizer that
            is not known, the gradient itself is measured then. Defaults to False.

    Raises:
        TypeError: If AGVM is not defined for this optimizer.
    """
    for kind, build in PRECONDITIONERS.items():
        if isinstance(optimizer, kind):
            return build(optimizer)
    if measures_only:
        return IdentityPreconditioner()
    known = ', '.join(sorted(kind.__name__ for kind in PRECONDITIONERS))
    raise TypeError(
        'AGVM measures the gradient that the optimizer steps along, which is defined '
        f'for {known} and their subclasses; got '
        f'{type(optimizer).__module__}.{type(optimizer).__name__}'
    )
