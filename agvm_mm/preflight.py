"""What is checked once before training, so that no cluster trains in vain."""

from collections.abc import Mapping

from mmengine.dist import all_gather_object, get_world_size
from mmengine.model import MMSeparateDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapperDict
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from agvm_mm.optim.agvm_wrapper import AGVMMixin


def check_optim_wrapper(optim_wrapper: object) -> None:
    """Refuse optimizer wrappers whose steps AGVM cannot scale.

    Raises:
        TypeError: If it is not an AGVM wrapper.
    """
    if isinstance(optim_wrapper, OptimWrapperDict):
        raise TypeError(
            'VarianceSyncHook does not support OptimWrapperDict (several optimizers): '
            'AGVM needs one optimizer over all modules'
        )
    if not isinstance(optim_wrapper, AGVMMixin):
        raise TypeError(
            'VarianceSyncHook needs optim_wrapper=dict(type="AGVMOptimWrapper", '
            'constructor="AGVMOptimWrapperConstructor", ...) or '
            f'AGVMAmpOptimWrapper; this run has {type(optim_wrapper).__name__}'
        )


def check_model(model: nn.Module, accumulation: int) -> None:
    """Refuse wrapped models whose gradients AGVM cannot see.

    Args:
        model (nn.Module): As the runner trains it.
        accumulation (int): Micro-batches of one update.

    Raises:
        TypeError: If it is wrapped in anything but DistributedDataParallel, or in
            nothing on several ranks.
        ValueError: If it is DDP with static_graph and gradients are accumulated.
    """
    if any(is_sharded(module) for module in model.modules()):
        raise TypeError(
            'AGVM does not support FSDP: no rank holds the whole gradient of a '
            'module. Use MMDistributedDataParallel'
        )
    # MMSeparateDistributedDataParallel says that it is a DDP, but wraps several.
    separate = isinstance(model, MMSeparateDistributedDataParallel)
    if isinstance(model, DistributedDataParallel) and not separate:
        if model.static_graph and accumulation > 1:
            raise ValueError(
                f'static_graph=True with {accumulation} accumulated micro-batches '
                'fails inside DDP; leave static_graph out of model_wrapper_cfg'
            )
    elif is_model_wrapper(model) or isinstance(model, nn.DataParallel):
        raise TypeError(
            f'AGVM does not support models wrapped in {type(model).__name__}; use '
            'MMDistributedDataParallel'
        )
    elif get_world_size() > 1:
        raise TypeError(
            f'{get_world_size()} ranks, but the model is not wrapped in '
            'DistributedDataParallel: each would train a model of its own. Set '
            "launcher='pytorch' (or slurm, mpi)"
        )


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP, of either generation, holds the parameters of a module."""
    if not dist.is_available():
        return False
    from torch.distributed import fsdp

    # fully_shard and its FSDPModule became public in torch 2.6.
    kinds = (fsdp.FullyShardedDataParallel, getattr(fsdp, 'FSDPModule', ()))
    return isinstance(module, kinds)


def check_ranks_agree(fingerprint: Mapping[str, object]) -> None:
    """Compare settings over all ranks.

    Args:
        fingerprint (Mapping[str, object]): This rank's settings by name.

    Raises:
        ValueError: If a rank has another value than rank 0.
    """
    everyone = all_gather_object(dict(fingerprint))
    for rank, other in enumerate(everyone):
        for name, value in everyone[0].items():
            if other[name] != value:
                raise ValueError(
                    f'the ranks disagree on {name}: rank 0 has {value}, rank {rank} '
                    f'has {other[name]}; start all of them from the same config and '
                    'checkpoint'
                )
