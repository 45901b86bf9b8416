"""Estimators that gather the statistics of the gradients."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from agvm_mm.estimators.base import VarianceEstimator
from agvm_mm.estimators.ddp import COMPRESSION_HOOKS, DDPHalves, DDPReplicas
from agvm_mm.estimators.micro_batches import MicroBatchHalves, MicroBatchReplicas
from agvm_mm.estimators.preconditioner import build_preconditioner
from agvm_mm.estimators.statistics import ModuleStatistics
from agvm_mm.preflight import check_replicas

__all__ = [
    'COMPRESSION_HOOKS',
    'ESTIMATORS',
    'ModuleStatistics',
    'VarianceEstimator',
    'build_estimator',
    'build_preconditioner',
]

ESTIMATORS = {
    'halves': (DDPHalves, MicroBatchHalves),
    'replicas': (DDPReplicas, MicroBatchReplicas),
}
"""Estimators by name: the one for the ranks of DDP and the one for micro-batches."""


def build_estimator(
    name: str,
    optimizer: Optimizer,
    model: nn.Module,
    *,
    accumulation: int,
    comm_hook: str | None = None,
    by_module: dict[str, list[nn.Parameter]] | None = None,
) -> VarianceEstimator:
    """Build the estimator for a run: over the ranks of DDP or over micro-batches.

    Args:
        name: A key of :data:`ESTIMATORS`.
        optimizer: Steps along the gradients.
        model: As the runner trains it, in DDP or not.
        accumulation: Micro-batches of one update on each rank.
        comm_hook: Compression of the mean gradient under DDP, see
            :data:`COMPRESSION_HOOKS`. Defaults to None.
        by_module: Parameters of each module, by its name. Defaults to None: the groups
            of the optimizer have the key 'module'.

    Raises:
        ValueError: If there is nothing to compare, or nothing to compress.
    """
    over_ranks, over_micro_batches = ESTIMATORS[name]
    is_ddp = isinstance(model, DistributedDataParallel)
    ranks = model.process_group.size() if is_ddp else 1
    check_replicas(ranks, accumulation, comm_hook)
    if ranks > 1:
        return over_ranks(optimizer, by_module, model=model, comm_hook=comm_hook)
    return over_micro_batches(optimizer, by_module)
