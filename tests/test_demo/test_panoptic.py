"""Tests of panoptic maps: complete, consistent with masks and label maps, PQ of 100."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS
from pycocotools.coco import COCO

from demo import CLASSES, PIXEL_CLASSES, TEXTURES, scenes

CONFIG = Path(__file__).parents[2] / 'configs/_base_/datasets/digits_panoptic.py'


@pytest.fixture(autouse=True)
def mmdet_registered():
    pytest.importorskip('panopticapi')
    pytest.importorskip('mmdet.utils').register_all_modules(init_default_scope=True)


@pytest.fixture(params=scenes.SPLITS)
def split(request):
    return request.param


def read(digits, split):
    """Return the panoptic JSON and the map of segment ids of each annotation."""
    folder = digits / 'annotations'
    content = json.loads((folder / f'panoptic_{split}.json').read_text())
    maps = []
    for annotation in content['annotations']:
        path = folder / f'panoptic_{split}' / annotation['file_name']
        blue, green, red = cv2.split(cv2.imread(str(path)).astype(int))
        maps.append(red + 256 * green + 256**2 * blue)
    return content, maps


def build(digits, loader='train_dataloader', **settings):
    dataset = Config.fromfile(CONFIG)[loader].dataset
    return DATASETS.build(dict(dataset, data_root=f'{digits}/', **settings))


def test_categories(digits, split):
    categories = read(digits, split)[0]['categories']
    assert [category['name'] for category in categories] == list(PIXEL_CLASSES)
    assert PIXEL_CLASSES == CLASSES + TEXTURES
    assert [category['isthing'] for category in categories] == [1] * 10 + [0] * 4
    assert len({category['id'] for category in categories}) == 14


def test_maps_contain_the_segments_listed_in_json(digits, split):
    content, maps = read(digits, split)
    assert [image['id'] for image in content['images']] == [
        annotation['image_id'] for annotation in content['annotations']
    ]
    for annotation, ids in zip(content['annotations'], maps, strict=True):
        segments = annotation['segments_info']
        # Every pixel has a segment; 0 would mean none.
        assert sorted(s['id'] for s in segments) == np.unique(ids).tolist()
        assert 0 not in ids
        assert sum(s['area'] for s in segments) == ids.size
        for segment in segments:
            mask = ids == segment['id']
            rows, columns = np.where(mask)
            x, y, width, height = segment['bbox']
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert segment['area'] == mask.sum()
            assert segment['iscrowd'] == 0
        stuff = [s['category_id'] for s in segments if s['category_id'] > len(CLASSES)]
        assert 1 <= len(stuff) <= 2 and len(set(stuff)) == len(stuff)


def test_things_match_instance_masks(digits, split):
    content, maps = read(digits, split)
    coco = COCO(digits / 'annotations' / f'instances_{split}.json')
    for annotation, ids in zip(content['annotations'], maps, strict=True):
        things = [
            s for s in annotation['segments_info'] if s['category_id'] <= len(CLASSES)
        ]
        instances = coco.imgToAnns[annotation['image_id']]
        assert len(things) == len(instances)
        for segment, instance in zip(things, instances, strict=True):
            assert segment['category_id'] == instance['category_id']
            np.testing.assert_array_equal(
                ids == segment['id'], coco.annToMask(instance)
            )


def test_stuff_matches_textures_of_scene(digits, split):
    content, maps = read(digits, split)
    images, labels = scenes.load_digits()
    candidates = scenes.split_digits(labels, 0)[split]
    for index, ids in enumerate(maps):
        rng = scenes.scene_rng(0, split, index)
        scene = scenes.compose_scene(rng, images, labels, candidates)
        segments = content['annotations'][index]['segments_info']
        for segment in segments:
            texture = segment['category_id'] - 1 - len(CLASSES)
            if texture >= 0:
                expected = (scene.textures == texture) & (scene.instances == 0)
                np.testing.assert_array_equal(ids == segment['id'], expected)


def test_label_maps_match_panoptic_maps(digits, split):
    content, maps = read(digits, split)
    for annotation, ids in zip(content['annotations'], maps, strict=True):
        path = digits / f'annotations/semantic_{split}' / annotation['file_name']
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8 and labels.shape == ids.shape
        for segment in annotation['segments_info']:
            assert (labels[ids == segment['id']] == segment['category_id'] - 1).all()


def test_dataset_builds_from_config(digits):
    dataset = build(digits)
    assert len(dataset) == 12
    assert dataset.metainfo['classes'] == PIXEL_CLASSES
    assert len(dataset.metainfo['palette']) == len(PIXEL_CLASSES)
    item = dataset[0]
    info = dataset.get_data_info(0)
    sample = item['data_samples']
    name = Path(info['img_path']).name
    labels = cv2.imread(str(digits / 'annotations/semantic_train' / name), -1)
    np.testing.assert_array_equal(sample.gt_sem_seg.sem_seg[0], labels)
    coco = COCO(digits / 'annotations' / 'instances_train.json')
    truth = coco.imgToAnns[info['img_id']]
    objects = sample.gt_instances
    assert objects.labels.tolist() == [a['category_id'] - 1 for a in truth]
    np.testing.assert_array_equal(
        objects.masks.masks, [coco.annToMask(a) for a in truth]
    )


def perfect_prediction(dataset, index, relabel=lambda label: label):
    """Return the ground truth in the format of a model's panoptic prediction."""
    from mmdet.evaluation.functional import INSTANCE_OFFSET

    info = dataset.get_data_info(index)
    sample = dataset[index]['data_samples']
    result = sample.gt_sem_seg.sem_seg.clone().int()
    masks = sample.gt_instances.masks.masks
    for number, (mask, label) in enumerate(
        zip(masks, sample.gt_instances.labels, strict=True), start=1
    ):
        identity = relabel(int(label)) + number * INSTANCE_OFFSET
        result[0][torch.from_numpy(mask).bool()] = identity
    return dict(
        img_id=info['img_id'],
        img_path=info['img_path'],
        ori_shape=sample.ori_shape,
        segments_info=info['segments_info'],
        seg_map_path=info['seg_map_path'],
        pred_panoptic_seg=dict(sem_seg=result),
    )


def evaluate(digits, *, with_file=True, **options):
    dataset = build(digits, 'val_dataloader')
    settings = dict(Config.fromfile(CONFIG).val_evaluator)
    settings['seg_prefix'] = str(digits / 'annotations/panoptic_val/')
    settings['ann_file'] = str(digits / 'annotations/panoptic_val.json')
    if not with_file:
        settings.pop('ann_file')
    metric = METRICS.build(settings)
    metric.dataset_meta = dataset.metainfo
    predictions = [
        perfect_prediction(dataset, index, **options) for index in range(len(dataset))
    ]
    metric.process({}, predictions)
    return metric.evaluate(len(dataset))


@pytest.mark.parametrize('with_file', [True, False])
def test_ground_truth_has_pq_of_100(digits, with_file):
    found = evaluate(digits, with_file=with_file)
    for part in ('PQ', 'SQ', 'RQ', 'PQ_th', 'PQ_st'):
        assert found[f'coco_panoptic/{part}'] == pytest.approx(100), part


def test_wrong_digit_classes_lower_pq_of_things_only(digits):
    found = evaluate(digits, relabel=lambda label: (label + 1) % 10)
    assert found['coco_panoptic/PQ_th'] < 10
    assert found['coco_panoptic/PQ_st'] == pytest.approx(100)


def test_missing_data_error_gives_command(digits, tmp_path):
    command = f'python -m demo.data --out {tmp_path}'
    with pytest.raises(FileNotFoundError, match=command):
        build(tmp_path)
    (tmp_path / 'annotations').mkdir()
    name = 'annotations/panoptic_train.json'
    (tmp_path / name).write_bytes((digits / name).read_bytes())
    with pytest.raises(FileNotFoundError, match='panoptic_train/ does not exist'):
        build(tmp_path)
