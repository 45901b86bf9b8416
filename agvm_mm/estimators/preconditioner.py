"""Rescaling of gradients, as the optimizer does it before it steps.

SGD steps along the gradient itself. Adam and AdamW rescale it elementwise, and AGVM
measures the variance of the rescaled gradient. It takes norms: those of two halves and
of their sum give the product of the halves.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from agvm_mm.estimators.reductions import as_real, local, norms, widened

# Elements that are worked on at a time: what fits a CPU's cache; and on a GPU what is
# rescaled, 16 MiB in float32, in few kernels and without a copy of the whole gradient.
CPU_PIECE = 2**18
GPU_PIECE = 2**22

Lists = Sequence[Sequence[Tensor]]
Slices = Iterator[tuple[int, Sequence[int], Sequence[Tensor]]]
"""Columns of a table of norms, rows of parameters, and slices to take the norms of."""


class Preconditioner:
    """SGD: the variance is measured on the gradient itself.

    Attributes:
        rescales: Whether a measured quantity is not linear in the gradient.
        is_divided: Whether this rank has the moments of some parameters, or of parts of
            them, that no other rank has.
        loss_scale: Factor of all gradients, a tensor on their device; None for 1.
    """

    rescales = False
    is_divided = False
    loss_scale: Tensor | None = None

    def has(self, parameter: nn.Parameter) -> bool:
        """Return whether this rank can rescale gradients of a parameter."""
        return True

    def replica_norms(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return |g_r| of each parameter; of Adam |g_r / (sqrt(v) + eps)|.

        Args:
            parameters: Parameters.
            gradients: g_r of each, times the loss scale. Nothing is changed.
        """
        return self._norms(parameters, 1, self._replicas(parameters, gradients))[0]

    def directions(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return the gradients as :meth:`replica_norms` measures them."""
        parts: list[list[Tensor]] = [[] for _ in parameters]
        for _, rows, slices in self._replicas(parameters, gradients):
            for row, part in zip(rows, slices, strict=True):
                parts[row].append(part)
        return [own[0] if len(own) == 1 else torch.cat(own) for own in parts]

    def half_norms(
        self,
        parameters: Sequence[nn.Parameter],
        first: Sequence[Tensor],
        total: Sequence[Tensor],
        shares: tuple[float, float],
    ) -> list[list[Tensor]]:
        """Return the norms of two halves and of their sum, of each parameter.

        Adam rescales each half h to G_h / (sqrt(beta2 v + (1 - beta2) G_h^2) + eps),
        SGD to its share of G_h.

        Args:
            parameters: Parameters.
            first: a G_A of each, times the loss scale; may be overwritten.
            total: a G_A + b G_B, times the loss scale.
            shares: a and b.

        Returns:
            |D_A|, |D_B| and |D_A + D_B| of the rescaled halves D.
        """
        slices = self._halves(parameters, first, total, shares)
        return self._norms(parameters, 3, slices)

    def _replicas(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
    ) -> Slices:
        """Yield 0, rows of parameters and slices of their rescaled gradients."""
        yield 0, range(len(parameters)), gradients

    def _halves(
        self,
        parameters: Sequence[nn.Parameter],
        first: Sequence[Tensor],
        total: Sequence[Tensor],
        shares: tuple[float, float],
    ) -> Slices:
        """Yield 0 for D_A, 1 for D_B or 2 for the sum, rows and slices.

        The slices are valid until the next ones are asked for.
        """
        for rows, (own, both) in groups_of_slices([first, total], gpu_piece=math.inf):
            yield 0, rows, own
            yield 2, rows, both
            torch._foreach_sub_(own, both)
            yield 1, rows, own

    def _norms(
        self, parameters: Sequence[nn.Parameter], columns: int, slices: Slices
    ) -> list[list[Tensor]]:
        """Return the norm of each parameter in each column from those of its slices."""
        parts = [[[] for _ in parameters] for _ in range(columns)]
        for column, rows, tensors in slices:
            for row, norm in zip(rows, norms(tensors), strict=True):
                parts[column][row].append(norm)
        found = [
            [
                own[0] if len(own) == 1 else torch.linalg.vector_norm(torch.stack(own))
                for own in column
            ]
            for column in parts
        ]
        if self.loss_scale is None or not parameters:
            return found
        return [torch._foreach_mul(column, 1 / self.loss_scale) for column in found]


class AdamPreconditioner(Preconditioner):
    """Adam, AdamW: the gradient is divided by sqrt(v) + eps first.

    v is the optimizer's ``exp_avg_sq`` from before this update, 0 at the first one.
    Each of two halves updates v with its own gradient. Replicas share v as it is, so
    their mean is rescaled like each of them. Divided by eps alone, an element whose v
    is 0 would outweigh all others, and the first update all later ones: there such
    elements do not count, and a parameter without v counts as it is. With ``amsgrad``
    the largest v so far, ``max_exp_avg_sq``, takes the place of v. There is no first
    moment and no bias correction.

    Args:
        optimizer: An Adam or AdamW; that inside of ZeRO-1, which steps the parameters
            of this rank.
    """

    rescales = True

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        # By index: resuming replaces the group dicts.
        self._group_of = {
            parameter: index
            for index, group in enumerate(optimizer.param_groups)
            for parameter in group['params']
        }

    def has(self, parameter: nn.Parameter) -> bool:
        return parameter in self._group_of

    def _replicas(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
    ) -> Slices:
        for rows, settings, (own, moments, largest) in self._groups(
            parameters, [gradients], missing=1.0
        ):
            _, eps, amsgrad = settings
            scales = torch._foreach_sqrt(largest if amsgrad else moments)
            # 1 where v is above 0.
            counts = torch._foreach_clamp_max(scales, 1)
            torch._foreach_ceil_(counts)
            torch._foreach_add_(scales, eps)
            torch._foreach_div_(counts, scales)
            yield 0, rows, torch._foreach_mul(widened(own), counts)

    def _halves(
        self,
        parameters: Sequence[nn.Parameter],
        first: Sequence[Tensor],
        total: Sequence[Tensor],
        shares: tuple[float, float],
    ) -> Slices:
        for rows, settings, (own, both, moments, largest) in self._groups(
            parameters, [first, total]
        ):
            beta2, eps, amsgrad = settings
            # In float32 or wider: a gradient that was scaled up may vanish in half
            # precision.
            own, both = widened(own), widened(both)
            halves = own, torch._foreach_sub(both, own)
            directions = []
            for half, share in zip(halves, shares, strict=True):
                half = unscaled = torch._foreach_mul(half, 1 / share)
                if self.loss_scale is not None:
                    unscaled = torch._foreach_mul(half, 1 / self.loss_scale)
                scales = torch._foreach_mul(moments, beta2)
                torch._foreach_addcmul_(scales, unscaled, unscaled, 1 - beta2)
                if amsgrad:
                    scales = torch._foreach_maximum(scales, largest)
                torch._foreach_sqrt_(scales)
                torch._foreach_add_(scales, eps)
                torch._foreach_div_(half, scales)
                directions.append(half)
            for column, direction in enumerate(directions):
                yield column, rows, direction
            torch._foreach_add_(*directions)
            yield 2, rows, directions[0]

    def _groups(
        self,
        parameters: Sequence[nn.Parameter],
        lists: Lists,
        missing: float = 0.0,
    ) -> Iterator[tuple[list[int], tuple, list[list[Tensor]]]]:
        """Yield slices of gradients that are rescaled together.

        Args:
            parameters: Parameters.
            lists: Gradients of the parameters.
            missing: v of a parameter that has none. Defaults to 0.

        Yields:
            Rows of the slices in ``parameters``; beta2, eps and amsgrad of their group;
            the slices of each list, of v and with amsgrad of the largest v.
        """
        by_settings: dict[tuple, list[int]] = {}
        for row, parameter in enumerate(parameters):
            group = self._optimizer.param_groups[self._group_of[parameter]]
            amsgrad = bool(group.get('amsgrad'))
            settings = float(group['betas'][1]), float(group['eps']), amsgrad
            by_settings.setdefault(settings, []).append(row)
        for settings, rows in by_settings.items():
            names = ['exp_avg_sq', 'max_exp_avg_sq' if settings[2] else 'exp_avg_sq']
            states = [
                [self._moment(parameters[i], name, missing) for i in rows]
                for name in names
            ]
            gradients = [[as_real(tensors[row]) for row in rows] for tensors in lists]
            for places, slices in groups_of_slices([*gradients, *states]):
                *own, moments, largest = slices
                moments, largest = widened(moments), widened(largest)
                yield [rows[i] for i in places], settings, [*own, moments, largest]

    def _moment(self, parameter: nn.Parameter, name: str, missing: float) -> Tensor:
        moment = self._optimizer.state.get(parameter, {}).get(name)
        if moment is not None:
            return as_real(local(moment))
        like = as_real(local(parameter))
        return like.new_full((), missing).expand_as(like)


def groups_of_slices(
    lists: Lists, gpu_piece: float = GPU_PIECE
) -> Iterator[tuple[list[int], list[list[Tensor]]]]:
    """Yield groups of slices of lists of tensors, of a limited number of elements.

    How a tensor is sliced depends on its own shape only.

    Args:
        lists: Lists of tensors; those at one place have the same shape.
        gpu_piece: Elements on a GPU. Defaults to :data:`GPU_PIECE`.

    Yields:
        The place of each slice, and the slices of each list.
    """
    places: list[int] = []
    slices: list[list[Tensor]] = [[] for _ in lists]
    elements = 0
    for place, tensors in enumerate(zip(*lists, strict=True)):
        like = tensors[0]
        limit = CPU_PIECE if like.device.type == 'cpu' else gpu_piece
        parts = [tensors]
        if like.numel() > limit and like.dim():
            rows = max(1, limit * len(like) // like.numel())
            parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
        for part in parts:
            if places and elements + part[0].numel() > limit:
                yield places, slices
                places, slices, elements = [], [[] for _ in lists], 0
            places.append(place)
            elements += part[0].numel()
            for own, piece in zip(slices, part, strict=True):
                own.append(piece)
    if places:
        yield places, slices


# Subclasses count; the first match wins.
PRECONDITIONERS: dict[type[Optimizer], Callable[[Optimizer], Preconditioner]] = {
    torch.optim.AdamW: AdamPreconditioner,
    torch.optim.Adam: AdamPreconditioner,
    torch.optim.SGD: lambda optimizer: Preconditioner(),
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
        return Preconditioner()
    known = ', '.join(sorted(kind.__name__ for kind in PRECONDITIONERS))
    raise TypeError(
        'AGVM measures the gradient that the optimizer steps along, which is defined '
        f'for {known} and their subclasses; got '
        f'{type(optimizer).__module__}.{type(optimizer).__name__}'
    )
