"""Tiny random images with annotations for every task, as pipelines pack them."""

import importlib
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch.utils.data import Dataset


def detection_sample(
    rng: np.random.Generator, size: int, num_classes: int
) -> BaseDataElement:
    """Return three random boxes with labels and masks."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    corners = rng.uniform(0, size / 2, (3, 2))
    sizes = rng.uniform(size / 4, size / 2, (3, 2))
    boxes = np.hstack([corners, corners + sizes]).astype(np.float32)
    masks = np.zeros((3, size, size), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
        mask[top:bottom, left:right] = 1
    instances = InstanceData(
        bboxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(rng.integers(0, num_classes, 3)),
        masks=BitmapMasks(masks, size, size),
    )
    sample = DetDataSample(gt_instances=instances, ignored_instances=InstanceData())
    sample.ignored_instances.bboxes = torch.zeros(0, 4)
    sample.ignored_instances.labels = torch.zeros(0, dtype=torch.long)
    return sample


def segmentation_sample() -> BaseDataElement:
    """Return an empty sample of MMSegmentation."""
    from mmseg.structures import SegDataSample

    return SegDataSample()


@DATASETS.register_module(force=True)
class SyntheticDataset(Dataset):
    """Data set of random images that are the same at every reading.

    Args:
        scope: 'mmdet' or 'mmseg'.
        images: Number of images.
        size: Height and width in pixels.
        num_classes: Number of object classes.
        num_seg_classes: Number of pixel classes.
    """

    def __init__(
        self, scope: str, images: int, size: int, num_classes: int, num_seg_classes: int
    ) -> None:
        self.scope = scope
        self.images = images
        self.size = size
        self.num_classes = num_classes
        self.num_seg_classes = num_seg_classes
        self.metainfo = {}

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        size = self.size
        inputs = torch.from_numpy(rng.integers(0, 256, (3, size, size), np.uint8))
        if self.scope == 'mmdet':
            sample = detection_sample(rng, size, self.num_classes)
        else:
            sample = segmentation_sample()
        labels = rng.integers(0, self.num_seg_classes, (1, size, size))
        data = torch.from_numpy(labels)
        # MMDetection reads `sem_seg`, MMSegmentation reads `data`.
        sample.gt_sem_seg = PixelData(
            **{'sem_seg' if self.scope == 'mmdet' else 'data': data}
        )
        sample.set_metainfo(
            dict(
                img_id=index,
                img_shape=(size, size),
                ori_shape=(size, size),
                scale_factor=(1.0, 1.0),
            )
        )
        return dict(inputs=inputs, data_samples=sample)


def without_downloads(cfg: Any) -> Any:
    """Remove pretrained weights from a model config."""
    if isinstance(cfg, dict):
        init = cfg.get('init_cfg')
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
            cfg['init_cfg'] = None
        if 'pretrained' in cfg:
            cfg['pretrained'] = None
        for value in cfg.values():
            without_downloads(value)
    elif isinstance(cfg, list):
        for value in cfg:
            without_downloads(value)
    return cfg


def scope_ready(scope: str) -> None:
    """Register the classes of a toolbox and look them up there first."""
    utils = importlib.import_module(f'{scope}.utils')
    utils.register_all_modules(init_default_scope=False)
    init_default_scope(scope)


def shrink(cfg: Config, work_dir: str) -> None:
    """Change a config to one update of two micro-batches of random images."""
    without_downloads(cfg.model)
    is_seg = cfg.default_scope == 'mmseg'
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (64, 64)
    heads = [cfg.model.get(key, {}) for key in ('bbox_head', 'decode_head')]
    heads.append(cfg.model.get('roi_head', {}).get('bbox_head', {}))
    heads = [head[0] if isinstance(head, list) else head for head in heads]
    classes = next(head['num_classes'] for head in heads if 'num_classes' in head)
    stuff = cfg.model.get('semantic_head', {}).get('num_stuff_classes', 0)
    cfg.train_dataloader = dict(
        # Normalization after pooling to one pixel needs two images.
        batch_size=2 if is_seg else 1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
        dataset=dict(
            type='SyntheticDataset',
            scope=cfg.default_scope,
            images=4 if is_seg else 2,
            size=64,
            num_classes=classes,
            num_seg_classes=classes + stuff,
        ),
    )
    cfg.train_cfg.total_batch_size = 4 if is_seg else 2
    for length in ('max_epochs', 'max_iters'):
        if length in cfg.train_cfg:
            cfg.train_cfg[length] = 1
    for key in ('val', 'test'):
        for part in ('cfg', 'dataloader', 'evaluator'):
            cfg[f'{key}_{part}'] = None
    cfg.default_hooks.checkpoint.update(interval=-1, save_last=False)
    cfg.default_hooks.logger.interval = 1
    for hook in cfg.default_hooks.values():
        if hook.type == 'VarianceSyncHook':
            hook.update(begin=0, interval=1)
    cfg.env_cfg.mp_cfg = dict(mp_start_method='fork', opencv_num_threads=0)
    cfg.work_dir = work_dir
