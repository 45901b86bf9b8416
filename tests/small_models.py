"""Small models of stock configs, and annotated images for them, in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmcv.ops import batched_nms
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.runner import set_random_seed
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import nn

from agvm_mm.report.plan import use_toolbox

CONFIGS = {
    'RetinaNet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'FCOS': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'VFNet': 'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py',
    'Faster R-CNN': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'Mask R-CNN': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'YOLOX': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'Semantic FPN': 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
}
SIZE = 64
"""Height and width of the images."""
WIDTHS = dict(
    out_channels=16,
    in_channels=16,
    feat_channels=16,
    conv_out_channels=16,
    channels=16,
    fc_out_channels=16,
    num_classes=4,
    stacked_convs=1,
    num_convs=1,
    dropout_ratio=0,
)


def small_config(name: str) -> ConfigDict:
    """Return the config of a small model that trains in milliseconds."""
    cfg = get_config(CONFIGS[name])
    use_toolbox(cfg)
    model = _shrink(cfg.model)
    preprocessor = model.data_preprocessor
    preprocessor.pop('batch_augments', None)
    if 'size' in preprocessor:
        preprocessor.size = (SIZE, SIZE)
    if name == 'YOLOX':
        model.backbone.update(widen_factor=0.125, deepen_factor=0.33)
        preprocessor.update(mean=[0.0] * 3, std=[255.0] * 3)
        model.neck.update(in_channels=[32, 64, 128], out_channels=16, num_csp_blocks=1)
        return model
    if name in ('FCOS', 'ATSS', 'VFNet'):
        model.bbox_head.norm_cfg = dict(type='GN', num_groups=4)
    model.backbone.update(depth=18, base_channels=8, frozen_stages=-1)
    model.neck.in_channels = [8, 16, 32, 64]
    return model


def _shrink(settings: Any, key: str = '') -> Any:
    if isinstance(settings, dict):
        return ConfigDict(
            {
                name: _shrink(value, name)
                for name, value in settings.items()
                if name not in ('init_cfg', 'pretrained')
            }
        )
    if isinstance(settings, list | tuple):
        return type(settings)(_shrink(value, key) for value in settings)
    if key == 'num' and settings > 64:
        return 64
    return WIDTHS.get(key, settings) if isinstance(settings, int | float) else settings


def small_model(name: str, **decode_head: Any) -> BaseModel:
    """Return a model in float64 with random weights, the same at each call.

    BatchNorm is in evaluation mode.
    """
    cfg = small_config(name)
    if decode_head:
        cfg.decode_head.update(decode_head)
    set_random_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg))
    model.init_weights()
    model.train().double()
    if name in ('ATSS', 'VFNet'):  # Their targets have the type of the anchors.
        head = model.bbox_head
        generator = getattr(head, 'atss_prior_generator', head.prior_generator)
        generator.grid_priors = partial(generator.grid_priors, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def _nms_in_float32(boxes: torch.Tensor, scores: torch.Tensor, *args: Any) -> tuple:
    kept, rows = batched_nms(boxes.float(), scores.float(), *args)
    return kept.double(), rows


@contextmanager
def float64_and_first_boxes() -> Iterator[None]:
    """Context for models in float64, whose samplers take the first boxes.

    What a sampler draws depends on the images before, so layouts would differ.
    """
    nms = 'mmdet.models.dense_heads.rpn_head.batched_nms'
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch(nms, _nms_in_float32),
            mock.patch('torch.randperm', lambda count, **_: torch.arange(count)),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


def annotated_images(name: str, count: int, size: int = SIZE) -> list[dict]:
    """Return images with 1 to 9 objects, or with up to half of the pixels ignored."""
    generator = np.random.RandomState(1)
    kind = _segmentation if name == 'Semantic FPN' else _detection
    samples = []
    for _ in range(count):
        pixels = generator.randint(256, size=(3, size, size), dtype=np.uint8)
        sample = kind(generator, size)
        sample.set_metainfo(
            dict(
                img_shape=(size, size),
                ori_shape=(size, size),
                scale_factor=(1.0, 1.0),
                flip=False,
            )
        )
        samples.append(dict(inputs=torch.from_numpy(pixels), data_samples=sample))
    return samples


def _detection(generator: np.random.RandomState, size: int) -> DetDataSample:
    count = generator.randint(1, 10)
    low = generator.randint(0, size // 2, size=(count, 2))
    high = low + generator.randint(size // 6, size // 2, size=(count, 2))
    masks = np.zeros((count, size, size), dtype=np.uint8)
    for mask, (left, top), (right, bottom) in zip(masks, low, high, strict=True):
        mask[top:bottom, left:right] = 1
    return DetDataSample(
        gt_instances=InstanceData(
            bboxes=torch.from_numpy(np.hstack([low, high])).double(),
            labels=torch.from_numpy(generator.randint(4, size=count)),
            masks=BitmapMasks(masks, size, size),
        ),
        ignored_instances=InstanceData(bboxes=torch.zeros(0, 4).double()),
    )


def _segmentation(generator: np.random.RandomState, size: int) -> SegDataSample:
    labels = torch.from_numpy(generator.randint(4, size=(1, size, size)))
    labels[:, : generator.randint(size // 2)] = 255
    return SegDataSample(gt_sem_seg=PixelData(data=labels))
