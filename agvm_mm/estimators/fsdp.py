"""Fully sharded models: the replicas are the ranks, each of which has slices.

A unit of the model hands the whole gradient of this rank to its reduce-scatter: one
flat tensor that has for each rank the slices of all parameters, padded with zeros. The
reduce-scatter here also reduces what an estimator compares, in the layout of the mean.
Squared norms of slices are summed over the ranks.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from agvm_mm.estimators.base import VarianceEstimator
from agvm_mm.estimators.ddp import DDPHalves
from agvm_mm.estimators.preconditioner import AdamPreconditioner, Preconditioner
from agvm_mm.estimators.reductions import as_real
from agvm_mm.estimators.statistics import ModuleStatistics
from agvm_mm.sharding.model import FullyShardedModel, own_parameters


class ShardedAdam(AdamPreconditioner):
    """Adam on slices: gradients and moments of what this rank has of a parameter."""

    def _moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        moment = self._optimizer.state.get(parameter, {}).get(name)
        if moment is not None:
            return as_real(moment.to_local())
        like = parameter.to_local()
        return as_real(like.new_zeros(()).expand_as(like))


class UnitReduction:
    """Reduce-scatter of one unit; torch does not export its base class.

    Args:
        name: Name of the unit.
        estimator: Says what else is reduced at a measured update.

    Attributes:
        mean: Slices of the mean gradient after a measured update, flat.
        compared: What the estimator needs besides, in the same layout.
    """

    def __init__(self, name: str, estimator: 'ShardedEstimator') -> None:
        self.name = name
        self.estimator = estimator
        self.mean: Tensor | None = None
        self.compared: Tensor | None = None

    def allocate(
        self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return a new tensor."""
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp,
        async_op: bool = False,
    ) -> None:
        """Reduce the gradient of the unit to the slice of its mean.

        Raises:
            RuntimeError: If a measured update reduces it a second time.
        """
        if not self.estimator.measuring:
            scatter_mean(output_tensor, input_tensor, group)
            return
        if self.mean is not None:
            raise RuntimeError(
                f"the unit '{self.name}' of FullyShardedModel reduces its gradient "
                'more than once in an update, so AGVM cannot compare the ranks; leave '
                'it out of units'
            )
        self.mean = output_tensor
        self.compared = self.estimator.reduce(input_tensor, output_tensor)

    def check(self, gradients: Sequence[Tensor]) -> None:
        """Check that slices of gradients are where this update has reduced them.

        Raises:
            RuntimeError: If they are not.
        """
        storage = self.mean.untyped_storage().data_ptr()
        if any(g.untyped_storage().data_ptr() != storage for g in gradients):
            raise RuntimeError(
                f"the gradient of the unit '{self.name}' of FullyShardedModel was not "
                'cleared after the last update; use zero_grad(set_to_none=True)'
            )


def scatter_mean(output: Tensor, flat: Tensor, group: dist.ProcessGroup) -> None:
    """Reduce a flat tensor to the slice of its mean over the ranks, as DDP does."""
    operation = dist.ReduceOp.AVG
    if dist.get_backend(group) != 'nccl':
        flat.div_(group.size())
        operation = dist.ReduceOp.SUM
    dist.reduce_scatter_tensor(output, flat, op=operation, group=group)


def scatter_sum(flat: Tensor, like: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the slice of the sum over the ranks."""
    own = torch.empty_like(like, dtype=flat.dtype)
    dist.reduce_scatter_tensor(own, flat, group=group)
    return own


class ShardedEstimator(VarianceEstimator):
    """Estimator that is the reduce-scatter of the units of a model.

    Args:
        preconditioner: See :class:`VarianceEstimator`.
        by_module: See :class:`VarianceEstimator`.
        model: The wrapped model.
        comm_hook: None.

    Raises:
        ValueError: If there is a ``comm_hook``.
    """

    def __init__(
        self,
        preconditioner: Preconditioner,
        by_module: dict[str, list[nn.Parameter]],
        *,
        model: FullyShardedModel,
        comm_hook: str | None = None,
    ) -> None:
        super().__init__(preconditioner, by_module)
        if comm_hook is not None:
            raise ValueError(
                f"comm_hook='{comm_hook}' is a hook of DistributedDataParallel; remove "
                'it with FullyShardedModel'
            )
        self._group = model.process_group
        self._ranks = self._group.size()
        self._units: list[tuple[UnitReduction, list[nn.Parameter]]] = []
        for name, unit in model.units().items():
            reduction = UnitReduction(name, self)
            unit.set_custom_reduce_scatter(reduction)
            # It gets the gradient as it is; scatter_mean divides.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
            # Without those of modules that share one.
            parameters = list(dict.fromkeys(own_parameters(unit)))
            self._units.append((reduction, parameters))

    def start(
        self, passes: int, loss_scale: Tensor | None = None, *, images: float = 1
    ) -> None:
        self.cancel()
        super().start(passes, loss_scale, images=images)

    def cancel(self) -> None:
        super().cancel()
        for reduction, _ in self._units:
            reduction.mean = reduction.compared = None

    @abstractmethod
    def reduce(self, flat: Tensor, mean: Tensor) -> Tensor:
        """Reduce the gradient of a unit at a measured update.

        Args:
            flat: Gradient of this rank; may be overwritten.
            mean: Receives the slice of the mean.

        Returns:
            The tensor that is compared with the mean.
        """

    def compared_with(
        self, parameter: nn.Parameter, gradient: Tensor, compared: Tensor
    ) -> Tensor:
        """Return the part of a unit's compared tensor that belongs to a gradient."""
        start = gradient.storage_offset()
        return compared.as_strided(gradient.size(), gradient.stride(), start)

    def squared_norms(self, norms: Callable[..., Sequence[list[Tensor]]]) -> Tensor:
        """Return the squares of the norms of all ranks, a row for each column.

        Args:
            norms: Returns columns of norms from parameters, tensors to compare with the
                slices of their gradients, and these slices.
        """
        rows, compared, gradients = [], [], []
        for reduction, parameters in self._units:
            if reduction.mean is None:
                continue
            if reduction.compared.is_cuda:  # It comes from FSDP's own stream.
                reduction.compared.record_stream(torch.cuda.current_stream())
            own = [p for p in parameters if p.grad is not None]
            own = [p for p in own if self.rows.of(p) is not None]
            slices = [p.grad.to_local() for p in own]
            reduction.check(slices)
            rows += map(self.rows.of, own)
            gradients += slices
            compared += [
                self.compared_with(p, gradient, reduction.compared)
                for p, gradient in zip(own, slices, strict=True)
            ]
        parameters = [self.rows.parameters[row] for row in rows]
        columns = norms(parameters, compared, gradients)
        self.cancel()
        table = torch.stack(
            [self.column(dict(zip(rows, each, strict=True))) for each in columns]
        ).square()
        dist.all_reduce(table, group=self._group)
        return table.cpu() / self.total_weight**2


class ShardedHalves(ShardedEstimator):
    """Compares the first half of the ranks with the second, see :class:`DDPHalves`."""

    shares = DDPHalves.shares

    def reduce(self, flat: Tensor, mean: Tensor) -> Tensor:
        first = self._ranks // 2
        is_first = dist.get_rank(self._group) < first
        signed = flat * (1 / first if is_first else -1 / (self._ranks - first))
        difference = scatter_sum(signed, mean, self._group)
        scatter_mean(mean, flat, self._group)
        # G is a G_A + b G_B and the difference d is G_A - G_B: a G_A is a (G + b d).
        a, b = self.shares
        return difference.mul_(a * b).add_(mean, alpha=a)

    def finish(self) -> dict[str, ModuleStatistics]:
        norms = partial(self.preconditioner.half_norms, shares=self.shares)
        return self.statistics_of_halves(self.squared_norms(norms).sqrt(), self.shares)


class ShardedReplicas(ShardedEstimator):
    """Compares all ranks through the norms of their own gradients.

    With SGD a measured update communicates two more numbers for each parameter. Adam
    rescales slices, so the squares of the gradient are reduced as well.
    """

    def reduce(self, flat: Tensor, mean: Tensor) -> Tensor:
        wide = torch.promote_types(flat.dtype, torch.float32)
        if self.preconditioner.rescales:
            squares = flat.to(wide).square().div_(self._ranks)
            roots = scatter_sum(squares, mean, self._group).sqrt_()
        else:  # Of this rank's gradient, over the slices of all ranks.
            by_rank = flat.view(self._ranks, -1)
            roots = torch.linalg.vector_norm(by_rank, dim=0, dtype=wide)
            roots /= self._ranks**0.5
        scatter_mean(mean, flat, self._group)
        return roots

    def compared_with(
        self, parameter: nn.Parameter, gradient: Tensor, compared: Tensor
    ) -> Tensor:
        if self.preconditioner.rescales:
            return super().compared_with(parameter, gradient, compared)
        # As long as the longest slice: there is padding on this rank only.
        rows = -(-len(parameter) // self._ranks)
        start = gradient.storage_offset()
        return compared[start : start + rows * parameter.shape[1:].numel()]

    def finish(self) -> dict[str, ModuleStatistics]:
        def norms(parameters: list, own: list, means: list) -> tuple[list, list]:
            each = self.preconditioner.replica_norms
            return each(parameters, own), each(parameters, means)

        return self.statistics_of_replicas(self.squared_norms(norms), self._ranks)
