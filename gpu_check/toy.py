"""Small float64 network with the structure of a detector."""

from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from torch import nn

from agvm_mm.estimators import build_estimator
from agvm_mm.method.modulator import MeasurementSchedule
from agvm_mm.optim import AGVMOptimWrapper


class ToyDetector(BaseModel):
    """Network with backbone, neck and two heads in float64.

    Args:
        use_mask_head: Whether ``roi_head.mask_head`` contributes to the loss. Defaults
            to True.
    """

    def __init__(self, use_mask_head: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
        self.neck = nn.Linear(8, 8, bias=False)
        self.roi_head = nn.ModuleDict(
            dict(bbox_head=nn.Linear(8, 3), mask_head=nn.Linear(8, 2))
        )
        self.use_mask_head = use_mask_head
        self.double()

    def forward(
        self,
        inputs: torch.Tensor | list[torch.Tensor],
        data_samples: torch.Tensor | list[torch.Tensor] | None = None,
        mode: str = 'loss',
    ) -> dict[str, torch.Tensor]:
        """Return the squared error of each image, averaged over the batch."""
        if isinstance(inputs, list):
            inputs, data_samples = torch.stack(inputs), torch.stack(data_samples)
        x = self.neck(torch.tanh(self.backbone(inputs)))
        loss = (self.roi_head['bbox_head'](x) - data_samples).square().mean()
        if self.use_mask_head:
            target = inputs[:, :2].sin()
            loss = loss + (self.roi_head['mask_head'](x) - target).square().mean()
        return dict(loss=loss)


def make_images(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy regression data: inputs (count, 6) and targets (count, 3)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return inputs, inputs[:, :3].tanh() + 0.5 * noise


OPTIMIZERS = {
    'SGD': dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-3),
    'AdamW': dict(type='AdamW', lr=0.01, weight_decay=1e-2),
}


def make_wrapper(
    model: nn.Module,
    optimizer: str | dict = 'SGD',
    *,
    estimator: str | None = None,
    attach_to: nn.Module | None = None,
    images_per_pass: float = 1,
    schedule: dict | None = None,
    **kwargs: Any,
) -> AGVMOptimWrapper:
    """Build an AGVMOptimWrapper and attach the estimator, if one is named.

    Args:
        model: The network, without DDP.
        optimizer: A key of ``OPTIMIZERS``, or the settings of an optimizer.
        estimator: Name of an estimator. Defaults to None, none is attached.
        attach_to: The network in DDP. Defaults to None, ``model``.
        images_per_pass: Images of one micro-batch over all ranks. Defaults to 1.
        schedule: Settings of the schedule. Defaults to None, every update is measured.
        kwargs: Further settings of the wrapper.
    """
    if isinstance(optimizer, str):
        optimizer = OPTIMIZERS[optimizer]
    wrapper = build_optim_wrapper(
        model, dict(type='AGVMOptimWrapper', optimizer=dict(optimizer), **kwargs)
    )
    agvm = wrapper.make_agvm(model)
    if estimator is not None:
        built = build_estimator(
            estimator,
            agvm.preconditioner,
            agvm.parameters,
            model if attach_to is None else attach_to,
            accumulation=kwargs.get('accumulative_counts', 1),
        )
        schedule = MeasurementSchedule(**(schedule or dict(interval=1)))
        agvm.attach(built, schedule, images_per_pass=images_per_pass)
    return wrapper
