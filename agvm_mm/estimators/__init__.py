"""How the statistics of the gradients are gathered."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from agvm_mm.estimators.base import VarianceEstimator
from agvm_mm.estimators.ddp import COMPRESSION_HOOKS, DDPHalves, DDPReplicas
from agvm_mm.estimators.micro_batches import MicroBatchHalves, MicroBatchReplicas
from agvm_mm.estimators.preconditioner import build_preconditioner

ESTIMATORS = {
    'halves': (DDPHalves, MicroBatchHalves),
    'replicas': (DDPReplicas, MicroBatchReplicas),
}


def build_estimator(
    name: str,
    optimizer: Optimizer,
    model: nn.Module,
    *,
    accumulation: int,
    comm_hook: str | None = None,
) -> VarianceEstimator:
    """Choose where the replicas come from: the ranks of DDP or the micro-batches.

    Args:
        name (str): 'halves' or 'replicas'.
        optimizer (Optimizer): Its groups carry the key 'module'.
        model (nn.Module): As the runner trains it, in DDP or not.
        accumulation (int): Micro-batches of one update on each rank.
        comm_hook (str, optional): Compression of the mean gradient under DDP.

    Raises:
        ValueError: If there is nothing to compare, or nothing to compress.
    """
    with_ranks, with_micro_batches = ESTIMATORS[name]
    if isinstance(model, DistributedDataParallel):
        ranks = model.process_group.size()
        if ranks > 1:
            return with_ranks(optimizer, model, comm_hook)
    if comm_hook is not None:
        raise ValueError(
            f"comm_hook='{comm_hook}' compresses the reduction over several ranks; "
            'this run has one'
        )
    if accumulation < 2:
        raise ValueError(
            'AGVM compares the gradients of several ranks, or of several '
            'micro-batches of an accumulated update; this run has one rank and '
            'accumulative_counts=1. Start more ranks (tools/dist_train.sh CONFIG 2), '
            'set optim_wrapper.accumulative_counts to 2 or more, or use '
            'train_cfg=dict(type="LargeBatchTrainLoop", total_batch_size=...)'
        )
    return with_micro_batches(optimizer)


__all__ = [
    'COMPRESSION_HOOKS',
    'ESTIMATORS',
    'VarianceEstimator',
    'build_estimator',
    'build_preconditioner',
]
