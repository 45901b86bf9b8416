"""Tests of the digits scenes as MMDetection data sets, built from the config."""

from pathlib import Path

import numpy as np
import pytest
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DATASETS
from pycocotools.coco import COCO

from agvm_mm.digits import CLASSES

CONFIG = Path(__file__).parents[2] / 'configs/_base_/datasets/digits_detection.py'


def build(folder, loader='train_dataloader', **settings):
    register_all_modules()
    dataset = Config.fromfile(CONFIG)[loader].dataset
    return DATASETS.build(dict(dataset, data_root=f'{folder}/', **settings))


def test_dataset_builds_from_config(digits):
    dataset = build(digits)
    assert len(dataset) == 12
    assert dataset.metainfo['classes'] == CLASSES
    coco = COCO(digits / 'annotations' / 'instances_train.json')
    item = dataset[3]
    info = dataset.get_data_info(3)
    assert item['inputs'].shape == (3, 96, 96)
    truth = coco.imgToAnns[info['img_id']]
    objects = item['data_samples'].gt_instances
    assert objects.labels.tolist() == [a['category_id'] - 1 for a in truth]
    x, y, width, height = np.array([a['bbox'] for a in truth]).T
    np.testing.assert_array_equal(
        objects.bboxes.tensor.numpy(), np.stack([x, y, x + width, y + height], 1)
    )


def test_masks_match_annotations(digits):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='PackDetInputs'),
    ]
    dataset = build(digits, pipeline=pipeline)
    coco = COCO(digits / 'annotations' / 'instances_train.json')
    truth = coco.imgToAnns[dataset.get_data_info(0)['img_id']]
    masks = dataset[0]['data_samples'].gt_instances.masks.masks
    np.testing.assert_array_equal(masks, [coco.annToMask(a) for a in truth])


def test_validation_items_have_scale_factor(digits):
    dataset = build(digits, 'val_dataloader')
    assert len(dataset) == 6
    assert dataset[0]['data_samples'].scale_factor == (1, 1)


def test_missing_data_error_gives_command(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f'python -m agvm_mm.digits --out {tmp_path}'
    ):
        build(tmp_path)
