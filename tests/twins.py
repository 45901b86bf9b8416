"""The digits configs as the tests see them: collected from the folder."""

import re
from functools import cache
from pathlib import Path

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
TWINS = sorted(path.stem for path in (ROOT / 'configs/digits').glob('*.py'))
NAME = re.compile(
    r'(?P<model>.+)_(?P<method>(agvm-)?(sgd|adamw)|lars|lamb|pmd-lamb)'
    r'_b(?P<batch>\d+)_(?P<epochs>\d+)e_digits$'
)
# What is trained by which methods, after the table of the large configs.
METHODS = {
    'faster-rcnn_r18_w16_fpn': 'sgd agvm-sgd adamw agvm-adamw lamb pmd-lamb',
    'mask-rcnn_r18_w16_fpn': 'sgd agvm-sgd adamw agvm-adamw lars',
    'panoptic-fpn_r18_w16_fpn': 'sgd agvm-sgd',
    'retinanet_r18_w16_fpn': 'sgd agvm-sgd adamw agvm-adamw lamb pmd-lamb',
    'sem-fpn_r18_w16': 'sgd agvm-sgd',
    'upernet_r18_w16': 'sgd agvm-sgd adamw agvm-adamw',
}
METRICS = {
    'faster-rcnn_r18_w16_fpn': 'coco/bbox_mAP',
    'mask-rcnn_r18_w16_fpn': 'coco/segm_mAP',
    'panoptic-fpn_r18_w16_fpn': 'coco_panoptic/PQ',
    'retinanet_r18_w16_fpn': 'coco/bbox_mAP',
    'sem-fpn_r18_w16': 'mIoU',
    'upernet_r18_w16': 'mIoU',
}
OPTIMIZERS = {
    'sgd': 'SGD',
    'adamw': 'AdamW',
    'lars': 'BaselineLARS',
    'lamb': 'BaselineLAMB',
    'pmd-lamb': 'PMDLAMB',
}


@cache
def load(twin):
    return Config.fromfile(ROOT / 'configs/digits' / f'{twin}.py')


def told(twin):
    """What a file name tells: model, method, batch and epochs."""
    match = NAME.match(twin)
    assert match, f'{twin} does not tell model, method, batch and epochs'
    return match.groupdict()


def hooks(cfg):
    """The settings of VarianceSyncHook: one dict, or none."""
    return [h for h in cfg.get('custom_hooks', []) if h.type == 'VarianceSyncHook']
