"""Small float64 networks shaped like detectors."""

import torch
from mmengine.model import BaseModel
from torch import nn

from agvm_mm.estimators import build_estimator
from agvm_mm.optim import AGVMOptimWrapperConstructor
from agvm_mm.modulator import MeasurementSchedule


class ToyDetector(BaseModel):
    """Backbone, neck and two heads in float64; the second may be unused.

    Args:
        use_head (bool): Whether ``roi_head.mask_head`` takes part in the loss.
    """

    def __init__(self, use_mask_head: bool = True):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
        self.neck = nn.Linear(8, 8, bias=False)
        self.roi_head = nn.ModuleDict(
            dict(bbox_head=nn.Linear(8, 3), mask_head=nn.Linear(8, 2))
        )
        self.use_mask_head = use_mask_head
        self.double()

    def forward(self, inputs, data_samples=None, mode='loss'):
        """Per-image squared errors, averaged over the batch."""
        if isinstance(inputs, list):
            inputs, data_samples = torch.stack(inputs), torch.stack(data_samples)
        x = self.neck(torch.tanh(self.backbone(inputs)))
        loss = (self.roi_head['bbox_head'](x) - data_samples).square().mean()
        if self.use_mask_head:
            target = inputs[:, :2].sin()
            loss = loss + (self.roi_head['mask_head'](x) - target).square().mean()
        return dict(loss=loss)


def make_images(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy regression data: inputs (count, 6), targets (count, 3)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return inputs, inputs[:, :3].tanh() + 0.5 * noise


OPTIMIZERS = {
    'SGD': dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-3),
    'AdamW': dict(type='AdamW', lr=0.01, weight_decay=1e-2),
}


def make_wrapper(
    model, optimizer='SGD', *, estimator=None, attach_to=None, schedule=None, **kwargs
):
    """Build an AGVMOptimWrapper; with an estimator's name, attach that as well."""
    if isinstance(optimizer, str):
        optimizer = OPTIMIZERS[optimizer]
    constructor = AGVMOptimWrapperConstructor(
        dict(type='AGVMOptimWrapper', optimizer=dict(optimizer), **kwargs)
    )
    wrapper = constructor(model)
    if estimator is not None:
        built = build_estimator(
            estimator,
            wrapper.optimizer,
            model if attach_to is None else attach_to,
            accumulation=kwargs.get('accumulative_counts', 1),
        )
        wrapper.attach(built, MeasurementSchedule(**(schedule or dict(interval=1))))
    return wrapper
