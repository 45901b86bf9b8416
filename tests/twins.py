"""Configs of the embedded digits and what is expected of them."""

from mmengine.config import ConfigDict
from zoo import LEAVES, load

TWINS = [leaf for leaf in LEAVES if leaf.startswith('digits/')]
# Methods of each model, as in configs/digits/README.md.
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


def variance_hooks(twin: str) -> list[ConfigDict]:
    """Return the settings of each VarianceSyncHook of a config."""
    hooks = load(twin).default_hooks.values()
    return [hook for hook in hooks if hook.type == 'VarianceSyncHook']
