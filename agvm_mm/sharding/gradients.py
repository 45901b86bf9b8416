"""Gradients that the units of a fully sharded model reduce.

A unit hands the whole gradient of this rank to its reduce-scatter: one flat tensor that
has for each rank the slices of all parameters, padded with zeros. The reduce-scatter
here also reduces what an estimator compares, in the layout of the mean. Squared norms
of slices are summed over the ranks.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from agvm_mm.estimators.ranks import GradientSource, RankEstimator, mean_operation


def average(mean: Tensor, tensor: Tensor, group: dist.ProcessGroup) -> None:
    """Reduce a tensor, which is overwritten, to the slice of its mean."""
    operation = mean_operation(tensor, group)
    dist.reduce_scatter_tensor(mean, tensor, op=operation, group=group)


class UnitReduction:
    """Reduce-scatter of one unit; torch does not export its base class.

    The estimator of the source says what else is reduced.
    """

    def __init__(self, name: str, source: 'ShardedGradients') -> None:
        self.name = name
        self.source = source

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
        """Reduce the gradient of the unit to the slice of its mean, as DDP does.

        Raises:
            RuntimeError: If a measured update reduces it a second time.
        """
        estimator, flat = self.source.estimator, input_tensor
        measuring, compared = estimator.measuring, None
        if measuring and self.name in estimator.kept:
            raise RuntimeError(
                f"the unit '{self.name}' of FullyShardedModel reduces its gradient "
                'more than once in an update, so AGVM cannot compare the ranks; leave '
                'it out of units'
            )
        if measuring:
            self.source.measure_rest()  # The unit before this one.
        if measuring and estimator.reduces_more:
            second = estimator.second(flat)
            compared = torch.empty_like(output_tensor, dtype=second.dtype)
            average(compared, second, group)
            compared = estimator.compared(compared)
        elif measuring:  # Norms of this rank's gradient over the slices of all ranks.
            wide = torch.promote_types(flat.dtype, torch.float32)
            by_rank = flat.view(group.size(), -1)
            compared = torch.linalg.vector_norm(by_rank, dim=0, dtype=wide)
            compared /= group.size() ** 0.5
        average(output_tensor, flat, group)
        if measuring:
            estimator.kept[self.name] = output_tensor, compared


class ShardedGradients(GradientSource):
    """Source of the gradients of a model whose units FSDP2 divides over a group."""

    copies = 1

    def __init__(
        self, units: Mapping[str, nn.Module], group: dist.ProcessGroup
    ) -> None:
        self.group = group
        self._units = units

    def connect(self, estimator: RankEstimator) -> None:
        """Have the units reduce what an estimator compares."""
        self.estimator = estimator
        for name, unit in self._units.items():
            unit.set_custom_reduce_scatter(UnitReduction(name, self))
            # It gets the gradient as it is, and divides.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)

    def measure_rest(self) -> None:
        """Measure the slices of gradients that were reduced and not measured so far.

        Raises:
            RuntimeError: If a gradient is not the one that this update has reduced.
        """
        estimator = self.estimator
        compared_in = {}
        for name, (mean, compared) in estimator.kept.items():
            if compared is not None:
                if compared.is_cuda:  # It may come from FSDP's own stream.
                    compared.record_stream(torch.cuda.current_stream())
                compared_in[mean.untyped_storage().data_ptr()] = compared
                estimator.kept[name] = mean, None
        parameters = estimator.not_measured()
        slices = [p.grad.to_local() for p in parameters]
        both = []
        for parameter, gradient in zip(parameters, slices, strict=True):
            compared = compared_in.get(gradient.untyped_storage().data_ptr())
            if compared is None:
                raise RuntimeError(
                    'a gradient of FullyShardedModel was not cleared after the last '
                    'update; use zero_grad(set_to_none=True)'
                )
            start = gradient.storage_offset()
            if estimator.reduces_more:
                part = compared.as_strided(gradient.size(), gradient.stride(), start)
            else:  # As long as the longest slice: there is padding on this rank only.
                rows = -(-len(parameter) // self.group.size())
                part = compared[start : start + rows * parameter.shape[1:].numel()]
            both.append(part)
        estimator.measure(parameters, both, slices)
