"""What the optimizer does to a gradient before it steps along it.

SGD steps along the gradient itself. Adam and AdamW step along it rescaled
elementwise, and AGVM measures the variance of what they step along.
"""

from collections.abc import Callable, Iterator
from types import EllipsisType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from agvm_mm.variance import CPU_PIECE, adam_direction, adam_second_moment

# An index into a parameter: a range of its first dimension, or all of it.
Block = slice | EllipsisType
# Elements that a GPU rescales at a time, 16 MiB in float32: few kernels, and no copies
# as large as a bucket.
GPU_PIECE = 2**22


class IdentityPreconditioner:
    """SGD: the variance is measured on the gradient itself.

    Phi does not change when all gradients are multiplied by one loss scale.
    """

    elementwise_state = False
    loss_scale: Tensor | None = None

    def blocks(self, parameter: nn.Parameter) -> Iterator[Block]:
        """All at once: nothing is copied."""
        yield ...

    def halves(
        self, parameter: nn.Parameter, block: Block, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor]:
        """G_A and G_B as they are."""
        return first, second

    def replica(
        self, parameter: nn.Parameter, block: Block, gradient: Tensor
    ) -> Tensor:
        """g_r as it is."""
        return gradient


class AdamPreconditioner:
    """Adam, AdamW: the gradient is divided by sqrt(v) + eps first.

    v is the optimizer's ``exp_avg_sq`` from before this update, 0 at the first.
    For two halves each takes its own gradient into its own v; replicas share v as
    it is, so that their mean goes through the same rescaling.

    Args:
        optimizer (Optimizer): An Adam or AdamW.
    """

    # The optimizer keeps a v for each parameter: parameters cannot be treated as
    # one flat vector.
    elementwise_state = True
    # The optimizer's v is of gradients without the loss scale.
    loss_scale: Tensor | None = None

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        # By index: a resume replaces the group dicts.
        self._group_of = {
            id(parameter): index
            for index, group in enumerate(optimizer.param_groups)
            for parameter in group['params']
        }

    def blocks(self, parameter: nn.Parameter) -> Iterator[Block]:
        """Ranges of rows that fit the cache, for copies in several steps."""
        if parameter.dim() == 0 or parameter.numel() == 0:
            yield ...
            return
        piece = CPU_PIECE if parameter.device.type == 'cpu' else GPU_PIECE
        rows = max(1, piece * len(parameter) // parameter.numel())
        for start in range(0, len(parameter), rows):
            yield slice(start, start + rows)

    def _settings(
        self, parameter: nn.Parameter, block: Block
    ) -> tuple[Tensor, float, float]:
        group = self._optimizer.param_groups[self._group_of[id(parameter)]]
        second_moment = self._optimizer.state.get(parameter, {}).get('exp_avg_sq')
        if second_moment is None:
            second_moment = parameter.new_zeros(()).expand_as(parameter)
        return second_moment[block], group['betas'][1], group['eps']

    def _unscaled(self, gradient: Tensor) -> Tensor:
        if self.loss_scale is None:
            return gradient
        # In float32 or wider: what was scaled up may vanish in half precision.
        wide = torch.promote_types(gradient.dtype, torch.float32)
        return gradient.to(wide) / self.loss_scale

    def halves(
        self, parameter: nn.Parameter, block: Block, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor]:
        """G_h / (sqrt(beta2 v + (1 - beta2) G_h^2) + eps) for both halves h.

        Args:
            parameter (nn.Parameter): The parameter.
            block (Block): One of its :meth:`blocks`.
            first (Tensor): G_A of that block.
            second (Tensor): G_B of that block.
        """
        previous, beta2, eps = self._settings(parameter, block)
        return tuple(
            adam_direction(half, adam_second_moment(half, previous, beta2), eps)
            for half in (self._unscaled(first), self._unscaled(second))
        )

    def replica(
        self, parameter: nn.Parameter, block: Block, gradient: Tensor
    ) -> Tensor:
        """g_r / (sqrt(v) + eps) of a block; arguments as of :meth:`halves`."""
        second_moment, _, eps = self._settings(parameter, block)
        return adam_direction(self._unscaled(gradient), second_moment, eps)


Preconditioner = IdentityPreconditioner | AdamPreconditioner

# Subclasses count; the first match wins.
PRECONDITIONERS: dict[type[Optimizer], Callable[[Optimizer], Preconditioner]] = {
    torch.optim.AdamW: AdamPreconditioner,
    torch.optim.Adam: AdamPreconditioner,
    torch.optim.SGD: lambda optimizer: IdentityPreconditioner(),
}


def build_preconditioner(optimizer: Optimizer) -> Preconditioner:
    """The preconditioner of an optimizer.

    Raises:
        TypeError: If AGVM is not defined for this optimizer.
    """
    for kind, build in PRECONDITIONERS.items():
        if isinstance(optimizer, kind):
            return build(optimizer)
    known = ', '.join(sorted(kind.__name__ for kind in PRECONDITIONERS))
    raise TypeError(
        f'AGVM measures the gradient that the optimizer steps along, which is '
        f'defined for {known} and their subclasses; got '
        f'{type(optimizer).__module__}.{type(optimizer).__name__}'
    )
