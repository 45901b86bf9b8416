"""Tiny random images with annotations for every task, as pipelines pack them."""

from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
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
