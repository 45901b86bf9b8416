"""State of an optimizer that may be divided over the ranks.

A checkpoint has the whole state, in the form of the plain optimizer, so that a run may
resume with another division or without one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch.distributed as dist
from mmengine.optim.optimizer import ZeroRedundancyOptimizer
from torch import Tensor
from torch.optim import Optimizer

from agvm_mm.sharding.model import DTensor, gather_tensors, shard_like
from agvm_mm.validation import type_name


def stepping(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that steps the parameters of this rank: ZeRO's inner one.

    Raises:
        ValueError: If it steps during the backward pass.
    """
    if not isinstance(optimizer, ZeroRedundancyOptimizer):
        return optimizer
    if not hasattr(optimizer, 'optim'):  # DDP makes it at the third update.
        raise ValueError(
            'ZeroRedundancyOptimizer(overlap_with_ddp=True) steps before AGVM has '
            'measured the gradients; remove overlap_with_ddp'
        )
    return optimizer.optim


def is_divided(optimizer: Optimizer) -> bool:
    """Return whether ranks have different parts of the state of an optimizer."""
    return isinstance(optimizer, ZeroRedundancyOptimizer) or any(
        isinstance(parameter, DTensor) for parameter in parameters_of(optimizer)
    )


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of an optimizer in the order of its groups."""
    return [p for group in optimizer.param_groups for p in group['params']]


@contextmanager
def inner_groups(optimizer: Optimizer) -> Iterator[None]:
    """Have ZeRO's inner optimizer step the groups that the outer one has now.

    A step copies the settings of the outer groups to the inner ones by place; those
    have this rank's parameters.
    """
    inner = stepping(optimizer)
    if inner is optimizer:
        yield
        return
    groups, own = inner.param_groups, set(map(id, parameters_of(inner)))
    inner.param_groups = [
        dict(group, params=[p for p in group['params'] if id(p) in own])
        for group in optimizer.param_groups
    ]
    try:
        yield
    finally:
        inner.param_groups = groups


def gather_state(state: dict) -> dict:
    """Return the whole state of an optimizer on rank 0; other ranks may get a part.

    All ranks have to call this. The state of ZeRO is whole already.
    """
    if 'state' not in state:  # ZeRO's on other ranks.
        return state
    own = state['state']
    return state | dict(state={i: gather_tensors(own[i]) for i in sorted(own)})


def load_state(
    optimizer: Optimizer, write: Callable[[dict], None], state: dict
) -> None:
    """Load a whole state, which stays as it is; ``write`` loads the optimizer's own."""
    if not is_divided(optimizer):
        write(state)
        return
    indices = [index for group in state['param_groups'] for index in group['params']]
    own = dict(zip(indices, parameters_of(optimizer), strict=True))
    slices = {
        index: {name: shard_like(value, own[index]) for name, value in each.items()}
        for index, each in state['state'].items()
    }
    write(state | dict(state=slices))
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        optimizer.state.clear()  # A second one, which is never updated.


def check_has_ranks(settings: Mapping | None) -> None:
    """Check that an optimizer of a config has ranks to divide its moments over.

    Raises:
        ValueError: If ZeRO-1 is to train without a process group.
    """
    is_zero = type_name((settings or {}).get('type')) == 'ZeroRedundancyOptimizer'
    if is_zero and not dist.is_initialized():
        raise ValueError(
            "optimizer.type='ZeroRedundancyOptimizer' divides moments over several "
            'ranks; this run has one. Start more ranks (tools/dist_train.sh CONFIG 2), '
            'or use its optimizer_type as type'
        )
