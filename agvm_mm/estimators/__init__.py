"""Estimators that gather the statistics of the gradients."""

from functools import partial

from mmengine.dist import get_world_size
from mmengine.model import MMSeparateDistributedDataParallel, is_model_wrapper
from torch import nn
from torch.distributed import fsdp
from torch.nn.parallel import DistributedDataParallel

from agvm_mm.estimators.base import ModuleStatistics, VarianceEstimator
from agvm_mm.estimators.ddp import COMPRESSION_HOOKS, DDPGradients
from agvm_mm.estimators.micro_batches import MicroBatchHalves, MicroBatchReplicas
from agvm_mm.estimators.preconditioner import Preconditioner, build_preconditioner
from agvm_mm.estimators.ranks import RankHalves, RankReplicas

__all__ = [
    'COMPRESSION_HOOKS',
    'ESTIMATORS',
    'ModuleStatistics',
    'VarianceEstimator',
    'build_estimator',
    'build_preconditioner',
    'check_accumulation',
    'check_model',
    'check_replicas',
]

ESTIMATORS = {
    'halves': (RankHalves, MicroBatchHalves),
    'replicas': (RankReplicas, MicroBatchReplicas),
}
"""Estimators by name: the one over ranks and the one over micro-batches."""


def build_estimator(
    name: str,
    preconditioner: Preconditioner,
    by_module: dict[str, list[nn.Parameter]],
    model: nn.Module,
    *,
    accumulation: int,
    comm_hook: str | None = None,
) -> VarianceEstimator:
    """Build the estimator for a run: over ranks or over micro-batches.

    Args:
        name: A key of :data:`ESTIMATORS`.
        preconditioner: Turns a gradient into what the optimizer steps along.
        by_module: Parameters of each module, by its name.
        model: As the runner trains it: in DDP, in a wrapper that has a method
            ``gradient_source``, or in none.
        accumulation: Micro-batches of one update on each rank.
        comm_hook: Compression of the mean gradient under DDP, see
            :data:`COMPRESSION_HOOKS`. Defaults to None.

    Raises:
        ValueError: If there is nothing to compare, or nothing to compress.
    """
    over_ranks, over_micro_batches = ESTIMATORS[name]
    ranks = model.process_group.size() if hasattr(model, 'process_group') else 1
    check_replicas(ranks, accumulation, comm_hook)
    if ranks == 1:
        return over_micro_batches(preconditioner, by_module)
    source_of = getattr(model, 'gradient_source', partial(DDPGradients, model))
    return over_ranks(preconditioner, by_module, source_of(comm_hook))


def check_replicas(ranks: int, accumulation: int, comm_hook: str | None) -> None:
    """Check that an update has several gradients: of ranks, or on one, micro-batches.

    Raises:
        ValueError: If there is nothing to compare, or nothing to compress.
    """
    if ranks > 1:
        return
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


def check_model(model: nn.Module, accumulation: int) -> None:
    """Check that AGVM can see the gradients of a model, as the runner trains it.

    Raises:
        TypeError: If it is wrapped in anything but DistributedDataParallel, or not
            wrapped on several ranks, has sparse gradients or lies on several devices.
        ValueError: If DDP has static_graph and gradients are accumulated.
    """
    check_gradients(model)
    if hasattr(model, 'gradient_source'):  # A wrapper of this package.
        return
    # fully_shard and its FSDPModule became public in torch 2.6.
    sharded = fsdp.FullyShardedDataParallel, getattr(fsdp, 'FSDPModule', ())
    if any(isinstance(module, sharded) for module in model.modules()):
        raise TypeError(
            'AGVM does not support FSDP but through its own wrapper; set '
            "model_wrapper_cfg=dict(type='FullyShardedModel')"
        )
    # MMSeparateDistributedDataParallel is a subclass of DDP, but wraps several.
    separate = isinstance(model, MMSeparateDistributedDataParallel)
    if isinstance(model, DistributedDataParallel) and not separate:
        check_accumulation(model, accumulation)
    elif is_model_wrapper(model) or isinstance(model, nn.DataParallel):
        raise TypeError(
            f'AGVM does not support models wrapped in {type(model).__name__}; use '
            'MMDistributedDataParallel'
        )
    elif get_world_size() > 1:
        raise TypeError(
            f'{get_world_size()} ranks, but the model is not wrapped in '
            'DistributedDataParallel: each rank would train its own model. Set '
            "launcher='pytorch' (or slurm, mpi)"
        )


def check_accumulation(model: nn.Module, accumulation: int) -> None:
    """Check that DDP, if the model is wrapped in it, can accumulate gradients.

    Raises:
        ValueError: If it cannot, and gradients are accumulated.
    """
    if accumulation == 1:
        return
    if getattr(model, 'static_graph', False):
        raise ValueError(
            f'static_graph=True with {accumulation} accumulated micro-batches '
            'fails inside DDP; remove static_graph from model_wrapper_cfg'
        )
    if isinstance(model, MMSeparateDistributedDataParallel):
        raise ValueError(
            f'MMSeparateDistributedDataParallel with {accumulation} accumulated '
            'micro-batches fails at parts of the model without parameters, such as '
            'its data_preprocessor; use MMDistributedDataParallel'
        )


def check_gradients(model: nn.Module) -> None:
    """Check that the gradients of a model are dense and on one device.

    Raises:
        TypeError: If they are not.
    """
    sparse = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    ]
    if sparse:
        raise TypeError(
            f'AGVM does not measure sparse gradients, and {sparse[0]} has them; set '
            'sparse=False there'
        )
    devices = {str(p.device) for p in model.parameters() if p.requires_grad}
    if len(devices) > 1:
        raise TypeError(
            'AGVM measures a model on one device for each rank; this one lies on '
            f'{", ".join(sorted(devices))}'
        )
