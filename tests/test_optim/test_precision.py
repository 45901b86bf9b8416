"""Detectors in bfloat16: what mmcv cannot compute in it runs in float32."""

import numpy as np
import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from scripts import ROOT
from synthetic import detection_sample
from torch import nn

from agvm_mm.optim.precision import keep_float32

LEAF = '{}_agvm-sgd_b256_10e_digits.py'
MODELS_OF_DIGITS = [
    'faster-rcnn_r18_w16_fpn',
    'mask-rcnn_r18_w16_fpn',
    'retinanet_r18_w16_fpn',
]


def build(name):
    register_all_modules()
    settings = Config.fromfile(ROOT / 'configs/digits' / LEAF.format(name)).model
    settings.backbone.norm_cfg = dict(type='BN')
    settings.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(settings)
    model.init_weights()
    return model.train()


def gradients(model, dtype):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    inputs = [torch.from_numpy(rng.integers(0, 255, (3, 96, 96), np.uint8))] * 2
    samples = [detection_sample(rng, 96, 10) for _ in inputs]
    for sample in samples:
        shape = dict(img_shape=(96, 96), batch_input_shape=(96, 96))
        sample.set_metainfo(shape | dict(scale_factor=(1, 1), ori_shape=(96, 96)))
    model.zero_grad()
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        data = model.data_preprocessor(
            dict(inputs=inputs, data_samples=samples), training=True
        )
        losses = model(**data, mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    return loss.item(), torch.cat(
        [p.grad.flatten() for p in model.backbone.parameters() if p.grad is not None]
    )


@pytest.mark.parametrize('name', MODELS_OF_DIGITS)
def test_detector_trains_in_bfloat16(name):
    model = build(name)
    loss, gradient = gradients(model, None)
    keep_float32(model)
    assert gradients(model, None)[0] == loss  # Nothing changes in float32.
    other, coarse = gradients(model, torch.bfloat16)
    assert other == pytest.approx(loss, rel=0.03)
    assert torch.cosine_similarity(gradient, coarse, dim=0) > 0.7


class Block(nn.Module):
    """Operators of mmcv with weights of their own and without."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3)
        self.deformable = ModulatedDeformConv2dPack(4, 4, 3)
        self.align = RoIAlign(2)
        self.last = nn.Linear(16, 2)

    def forward(self, images, rois):
        features = self.deformable(self.first(images))
        assert features.dtype == torch.float32
        return self.last(self.align(features, rois).flatten(1))


def test_autocast_goes_on_after_an_operator_and_after_its_error():
    block, images = Block(), torch.rand(1, 3, 12, 12)
    keep_float32(block)
    rois = torch.tensor([[0, 0.0, 0, 8, 8]])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert block(images, rois).dtype == torch.bfloat16
        with pytest.raises(RuntimeError):
            block.deformable(torch.rand(1, 5, 12, 12))
        assert block.first(images).dtype == torch.bfloat16
