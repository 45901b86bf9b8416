"""What mixed precision does not go together with."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

OPERATORS = (
    'mmcv.ops.',
    'mmdet.models.roi_heads.roi_extractors.',
    'mmdet.models.losses.focal_loss',
    'mmseg.models.losses.focal_loss',
)
"""Python modules whose layers call operators of mmcv 2.1.0, which have no bfloat16."""
BEFORE_NMS = ('mmdet.models.dense_heads.',)
"""Python modules whose layers predict what goes through mmcv's NMS in training."""


def check_fused_momentum(optim_wrapper: OptimWrapper) -> None:
    """Check that no update that a loss scaler skips spoils the momentum.

    torch (2.13, 2.15) fills the momentum of a fused SGD in the first step, which the
    scaler skips if a gradient is infinite; the second takes what was in that memory.

    Raises:
        TypeError: If it may.
    """
    scaler = getattr(optim_wrapper, 'loss_scaler', None)
    groups = optim_wrapper.optimizer.param_groups
    fused = any(group.get('fused') and group.get('momentum') for group in groups)
    if fused and scaler is not None and scaler.is_enabled():
        raise TypeError(
            'optimizer.fused=True with momentum and a loss scale: torch takes memory '
            'that nothing has written for the momentum if the first update is skipped, '
            'as it often is in float16; remove fused'
        )


def keep_float32(model: nn.Module) -> None:
    """Run mmcv's operators in float32 where the rest of a model is in bfloat16.

    The layers get hooks: those that call an operator run without autocast on float32,
    and the outputs of dense heads become float32 before NMS.
    """
    device = next(model.parameters()).device.type
    for layer in model.modules():
        names = [f'{kind.__module__}.' for kind in type(layer).__mro__]
        if any(name.startswith(OPERATORS) for name in names):
            region = Float32Region(device)
            layer.register_forward_pre_hook(region.enter, with_kwargs=True)
            layer.register_forward_hook(region.leave, always_call=True)
        elif any(name.startswith(BEFORE_NMS) for name in names):
            layer.register_forward_hook(lambda _, __, outputs: to_float32(outputs))


class Float32Region:
    """Hooks of a layer that turn autocast off while it runs, on a type of device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._contexts: list[AbstractContextManager] = []

    def enter(
        self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        """Return the arguments of a layer in float32."""
        context = torch.autocast(self._device, enabled=False)
        context.__enter__()
        self._contexts.append(context)
        return to_float32(args), to_float32(kwargs)

    def leave(self, layer: nn.Module, args: tuple, output: object) -> None:
        """Turn autocast on again, also after an error."""
        self._contexts.pop().__exit__(None, None, None)


def to_float32(value: Any) -> Any:
    """Return a tensor, or containers of tensors, with float32 in place of bfloat16."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    if isinstance(value, dict):
        return {key: to_float32(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(to_float32, value))
    return value
