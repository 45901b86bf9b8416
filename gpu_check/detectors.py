"""Detectors to measure, without weights to download, and images for them."""

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData

from agvm_mm.report.root import repository_root

DIGITS = 'configs/digits/faster-rcnn_r18_w16_fpn_agvm-sgd_b256_10e_digits.py'
R50 = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'


def detector_settings(name: str) -> ConfigDict:
    """Return the model settings of a config, without weights to download.

    Args:
        name: 'faster-rcnn_r50', or 'digits' for the twin of Faster R-CNN.
    """
    if name == 'digits':
        model = Config.fromfile(repository_root() / DIGITS).model
        # SyncBN does not run on a CPU.
        model.backbone.norm_cfg = dict(type='BN')
    else:
        model = get_config(R50).model
    model.backbone.init_cfg = None
    return model


def build_detector(settings: dict) -> BaseModel:
    """Build a detector; every call returns the same parameters."""
    torch.manual_seed(0)
    model = MODELS.build(settings)
    model.init_weights()
    return model


def make_batch(seed: int, images: int, shape: tuple[int, int], classes: int) -> dict:
    """Return noise images with three boxes each, for MMDetection.

    Args:
        seed: Random seed.
        images: Number of images.
        shape: Height and width in pixels.
        classes: Number of classes of the boxes.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, samples = [], []
    size = torch.tensor(shape[::-1])
    for _ in range(images):
        inputs.append(
            torch.randint(256, (3, *shape), dtype=torch.uint8, generator=generator)
        )
        corner = torch.rand(3, 2, generator=generator) * size / 2
        extent = (0.15 + 0.3 * torch.rand(3, 2, generator=generator)) * size
        sample = DetDataSample(
            metainfo=dict(
                img_shape=shape,
                ori_shape=shape,
                batch_input_shape=shape,
                pad_shape=shape,
                scale_factor=(1.0, 1.0),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + extent], dim=1),
            labels=torch.randint(classes, (3,), generator=generator),
        )
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)
