"""Small random images with annotations, as the toolboxes' models take them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import PixelData

from agvm_mm.validation import type_name

BRANCHES = ('sup', 'unsup_teacher', 'unsup_student')
"""Branches of a semi-supervised detector's data."""

CLASSES = ('num_classes', 'num_things_classes')
"""Settings of heads with numbers of classes."""


def make_images(cfg: Config, count: int, size: int) -> dict[str, Any]:
    """Return square images, or pairs of frames, with annotations for a config's model.

    The batch is as the data loader collates it, and the same at each call.
    """
    np.random.seed(0)
    classes = min(numbers_of(cfg.model, *CLASSES), default=1)
    if cfg.default_scope == 'mmseg':
        return _segmentation(count, size, classes)
    kind = type_name(cfg.model.get('data_preprocessor', {}).get('type', ''))
    if kind == 'TrackDataPreprocessor':
        return _videos(count, size, classes)
    # Some assigners use the masks where there are any.
    pipeline = repr(cfg.train_dataloader)
    masks = "'with_mask': True" in pipeline or 'LoadPanopticAnnotations' in pipeline
    batch = _detection(count, size, classes, masks=masks)
    stuff = max(numbers_of(cfg.model, 'num_stuff_classes'), default=0)
    for sample in batch['data_samples']:
        labels = np.random.randint(classes + stuff, size=(1, size, size))
        sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(labels).byte())
    if kind == 'MultiBranchDataPreprocessor':
        return {key: dict.fromkeys(BRANCHES, value) for key, value in batch.items()}
    return batch


def take(batch: dict[str, Any], images: slice) -> dict[str, Any]:
    """Return some images of a batch of :func:`make_images`."""
    return {
        key: (
            {branch: part[images] for branch, part in value.items()}
            if isinstance(value, dict)
            else value[images]
        )
        for key, value in batch.items()
    }


def numbers_of(settings: Any, *names: str) -> Iterator[int]:
    """Return the values of settings by name, in nested ones as well, except for 0."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            if key in names and value:
                yield value
            else:
                yield from numbers_of(value, *names)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from numbers_of(value, *names)


def _detection(count: int, size: int, classes: int, *, masks: bool) -> dict[str, Any]:
    from mmdet.testing import demo_mm_inputs, demo_mm_proposals

    # It draws labels from 1 on.
    shape = (3, size, size)
    batch = demo_mm_inputs(count, shape, num_classes=classes + 1, with_mask=masks)
    proposals = demo_mm_proposals([shape] * count, 100)
    for sample, own in zip(batch['data_samples'], proposals, strict=True):
        sample.gt_instances.labels -= 1
        sample.proposals = own
        sample.set_metainfo(dict(homography_matrix=np.eye(3, dtype=np.float32)))
    return batch


def _videos(count: int, size: int, classes: int) -> dict[str, Any]:
    from mmdet.testing import demo_track_inputs

    return demo_track_inputs(
        count,
        num_frames=2,
        key_frames_inds=[0],
        image_shapes=(3, size, size),
        num_classes=classes,
        with_mask=True,
    )


def _segmentation(count: int, size: int, classes: int) -> dict[str, Any]:
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    batch = dict(inputs=[], data_samples=[])
    for _ in range(count):
        image = torch.randint(256, (3, size, size), generator=generator)
        labels = torch.randint(classes, (1, size, size), generator=generator)
        sample = SegDataSample(
            gt_sem_seg=PixelData(data=labels),
            gt_edge_map=PixelData(data=labels % 2),
        )
        sample.set_metainfo(dict(img_shape=(size, size), ori_shape=(size, size)))
        batch['inputs'].append(image.byte())
        batch['data_samples'].append(sample)
    return batch
