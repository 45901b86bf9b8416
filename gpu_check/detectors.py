"""Detectors to measure, without weights to download, and images for them."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData

from gpu_check.trainers import VARIANTS_AND_NOISE, Trainer, build_trainers

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
DIGITS = CONFIGS / 'digits/faster-rcnn_r18_w16_fpn_agvm-sgd_b256_10e_digits.py'
R50 = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'


def build_detector(name: str) -> BaseModel:
    """Build 'faster-rcnn_r50' or its 'digits' twin, always with the same weights."""
    register_all_modules()
    if name == 'digits':
        settings = Config.fromfile(DIGITS).model
        # SyncBN does not run on a CPU.
        settings.backbone.norm_cfg = dict(type='BN')
    else:
        settings = get_config(R50).model
    settings.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(settings)
    model.init_weights()
    return model


def build_detectors(
    settings: dict,
) -> tuple[dict[str, Trainer], Callable[[int], dict]]:
    """Build a trainer for each variant; return them and this rank's batch by round.

    The settings are 'model', number of 'images' on a rank and their 'shape', and the
    'optimizer', which defaults to SGD.
    """
    trainers = build_trainers(
        lambda: build_detector(settings['model']),
        VARIANTS_AND_NOISE,
        settings.get('optimizer', 'SGD'),
    )
    return trainers, batches(trainers['plain'], settings)


def batches(trainer: Trainer, settings: dict) -> Callable[[int], dict]:
    """Return a function that makes the batch of this rank for a round."""
    classes = trainer.ddp.module.roi_head.bbox_head.num_classes

    def batch_of(turn: int) -> dict:
        generator = torch.Generator().manual_seed(1000 * turn + dist.get_rank())
        pairs = [
            noise_image(generator, settings['shape'], classes)
            for _ in range(settings['images'])
        ]
        inputs, samples = map(list, zip(*pairs, strict=True))
        return dict(inputs=inputs, data_samples=samples)

    return batch_of


def noise_image(
    generator: torch.Generator, shape: tuple[int, int], classes: int
) -> tuple[torch.Tensor, DetDataSample]:
    """Return an image of noise with three boxes, as MMDetection takes it."""
    size = torch.tensor(shape[::-1])
    pixels = torch.randint(256, (3, *shape), dtype=torch.uint8, generator=generator)
    corner = torch.rand(3, 2, generator=generator) * size / 2
    extent = (0.15 + 0.3 * torch.rand(3, 2, generator=generator)) * size
    sample = DetDataSample(metainfo=dict(img_shape=tuple(shape)))
    sample.gt_instances = InstanceData(
        bboxes=torch.cat([corner, corner + extent], dim=1),
        labels=torch.randint(classes, (3,), generator=generator),
    )
    return pixels, sample
