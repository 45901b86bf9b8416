"""Tests of the digits scenes as MMDetection data sets, built from the config."""

from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from pycocotools.coco import COCO

from demo import CLASSES
from demo.pretrain import BACKBONE

BASE = Path(__file__).parents[2] / 'configs/_base_'
CONFIG = BASE / 'datasets/digits_detection.py'
MODEL = BASE / 'models/faster-rcnn_r18_w16_fpn.py'


def build(folder, loader='train_dataloader', **settings):
    from mmdet.utils import register_all_modules

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


def load_all(dataset):
    """Return images, boxes and labels of a data set, in two passes."""
    return [
        (
            item['inputs'].tolist(),
            item['data_samples'].gt_instances.bboxes.tensor.tolist(),
            item['data_samples'].gt_instances.labels.tolist(),
        )
        for item in [*dataset, *dataset]
    ]


def test_cached_samples_are_those_of_the_files(digits, monkeypatch):
    loaded = []
    original = LoadImageFromFile.transform

    def transform(self, results):
        loaded.append(results['img_path'])
        return original(self, results)

    expected = load_all(build(digits))
    monkeypatch.setattr(LoadImageFromFile, 'transform', transform)
    assert load_all(build(digits, cache=True)) == expected
    assert len(loaded) == len(set(loaded)) == 12
    # Another data set of this process finds them, unless its settings differ.
    assert load_all(build(digits, cache=True)) == expected
    assert len(loaded) == 12
    assert len(build(digits, cache=True, indices=2)) == 2
    load_all(build(digits, cache=True, indices=2))
    assert len(loaded) == 14


def test_cache_refuses_random_transforms(digits):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5)]
    with pytest.raises(ValueError, match="cache=True .* got 'RandomFlip'"):
        build(digits, pipeline=pipeline, cache=True)


def test_training_leaves_cached_samples_as_they_were(digits):
    dataset = build(digits, cache=True)
    before = load_all(dataset)
    model = MODELS.build(Config.fromfile(MODEL).model | dict(backbone=BACKBONE))
    batch = pseudo_collate([dataset[index] for index in range(4)])
    keys = [sample.metainfo_keys() for sample in batch['data_samples']]
    batch = model.data_preprocessor(batch, training=True)
    model(**batch, mode='loss')
    assert load_all(dataset) == before
    assert [dataset[i]['data_samples'].metainfo_keys() for i in range(4)] == keys


def test_validation_items_have_scale_factor(digits):
    dataset = build(digits, 'val_dataloader')
    assert len(dataset) == 6
    assert dataset[0]['data_samples'].scale_factor == (1, 1)


def test_missing_data_error_gives_command(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f'python -m demo.data --out {tmp_path}'
    ):
        build(tmp_path)
