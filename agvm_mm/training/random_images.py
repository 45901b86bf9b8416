"""Small random images with annotations, as models of the toolboxes take them."""

from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData

SIZE = 128
"""Height and width."""
OBJECTS = (1, 8)
"""Objects of each image."""


def random_batches(model: BaseModel) -> list[dict[str, Any]]:
    """Return two batches of one image, and one of both images.

    They are the same at each call.

    Raises:
        TypeError: If the model is of neither toolbox.
    """
    toolboxes = {kind.__module__.partition('.')[0] for kind in type(model).__mro__}
    makers = {'mmdet': _detection, 'mmseg': _segmentation}
    maker = next((makers[name] for name in makers if name in toolboxes), None)
    if maker is None:
        raise TypeError(
            f'{type(model).__name__} is a model of neither MMDetection nor '
            'MMSegmentation'
        )
    # Assigners of RTMDet take masks if there are any, but those of its own head.
    masks = any(
        'mask' in name or 'panoptic' in name for name, _ in model.named_modules()
    )
    generator = np.random.RandomState(0)
    images, samples = [], []
    for count in OBJECTS:
        pixels = generator.randint(256, size=(3, SIZE, SIZE), dtype=np.uint8)
        images.append(torch.from_numpy(pixels))
        samples.append(maker(generator, count))
        if maker is _detection and not masks:
            del samples[-1].gt_instances.masks
        samples[-1].set_metainfo(
            dict(
                img_shape=(SIZE, SIZE),
                ori_shape=(SIZE, SIZE),
                pad_shape=(SIZE, SIZE),
                scale_factor=(1.0, 1.0),
                flip=False,
                flip_direction=None,
            )
        )
    return [
        dict(inputs=images[part], data_samples=samples[part])
        for part in (slice(0, 1), slice(1, 2), slice(0, 2))
    ]


def _detection(generator: np.random.RandomState, count: int) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    low = generator.randint(0, SIZE // 2, size=(count, 2))
    high = low + generator.randint(SIZE // 8, SIZE // 2, size=(count, 2))
    masks = np.zeros((count, SIZE, SIZE), dtype=np.uint8)
    for mask, (left, top), (right, bottom) in zip(masks, low, high, strict=True):
        mask[top:bottom, left:right] = 1
    return DetDataSample(
        gt_instances=InstanceData(
            bboxes=torch.from_numpy(np.hstack([low, high])).to(torch.zeros(0)),
            # Every head has this class.
            labels=torch.zeros(count, dtype=torch.long),
            masks=BitmapMasks(masks, SIZE, SIZE),
        ),
        ignored_instances=InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        ),
        gt_sem_seg=PixelData(sem_seg=torch.from_numpy(masks.max(0)[None])),
    )


def _segmentation(generator: np.random.RandomState, count: int) -> Any:
    from mmseg.structures import SegDataSample

    # Images differ in their classes, which heads with masks count.
    labels = torch.from_numpy(generator.rand(1, SIZE, SIZE) < (count - 1) / 10).long()
    edges = labels.clone()
    # By default the label of pixels that are not annotated.
    labels[:, : SIZE // (count + 1)] = 255
    return SegDataSample(
        gt_sem_seg=PixelData(data=labels), gt_edge_map=PixelData(data=edges)
    )
