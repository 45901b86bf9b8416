"""Ways to divide a training over ranks: DDP, ZeRO-1 and FSDP2."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from agvm_mm.sharding.model import DTensor, FullyShardedModel

ENGINES = ('ddp', 'zero', 'fsdp')
NAMES = dict(ddp='DDP', zero='ZeRO-1', fsdp='FSDP2')


def wrap(
    engine: str,
    model: nn.Module,
    wrap_in_ddp: Callable[[nn.Module], nn.Module],
    units: Sequence[str] | None = None,
) -> nn.Module:
    """Return a model as an engine trains it.

    Args:
        engine: A name of ``ENGINES``.
        model: The network.
        wrap_in_ddp: Wraps it for the engines that use DDP.
        units: See :class:`.FullyShardedModel`. Defaults to None.
    """
    if engine == 'fsdp':
        return FullyShardedModel(model, units=units)
    return wrap_in_ddp(model)


def optimizer_for(engine: str, settings: dict) -> dict[str, Any]:
    """Return the settings of an optimizer as an engine needs them."""
    if engine != 'zero':
        return settings
    kind = dict(type='ZeroRedundancyOptimizer', optimizer_type=settings['type'])
    return settings | kind


def whole(parameter: nn.Parameter) -> Tensor:
    """Return the values of a parameter; all ranks have to call this."""
    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value
