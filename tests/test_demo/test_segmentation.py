"""Tests of the MMSegmentation data set, and of installations without a toolbox."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS
from mmengine.structures import PixelData

from demo import CLASSES, PIXEL_CLASSES, pretrain

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/_base_/datasets/digits_semantic.py'


@pytest.fixture
def mmseg():
    pytest.importorskip('demo.segmentation')
    utils = pytest.importorskip('mmseg.utils')
    utils.register_all_modules(init_default_scope=True)


def build(digits, loader='train_dataloader', **settings):
    dataset = Config.fromfile(CONFIG)[loader].dataset
    return DATASETS.build(dict(dataset, data_root=f'{digits}/') | settings)


@pytest.mark.parametrize('textures', [True, False])
@pytest.mark.parametrize(
    'loader, split, number',
    [('train_dataloader', 'train', 12), ('val_dataloader', 'val', 6)],
)
def test_dataset_builds_from_config(mmseg, digits, loader, split, number, textures):
    dataset = build(digits, loader, textures=textures)
    assert len(dataset) == number
    classes = PIXEL_CLASSES if textures else (*CLASSES, 'background')
    assert dataset.metainfo['classes'] == classes
    assert len(dataset.metainfo['palette']) == len(classes)
    for index in range(number):
        item = dataset[index]
        name = f'{index:06d}.png'
        image = cv2.imread(str(digits / split / name))
        np.testing.assert_array_equal(item['inputs'], image.transpose(2, 0, 1))
        labels = cv2.imread(str(digits / f'annotations/semantic_{split}' / name), -1)
        found = item['data_samples'].gt_sem_seg.data
        expected = labels if textures else np.minimum(labels, len(CLASSES))
        np.testing.assert_array_equal(found[0], expected)
        assert found.max() < len(classes)


def score(dataset, change=lambda labels: labels):
    """Return the IoU metrics of predictions derived from the ground truth."""
    metric = METRICS.build(dict(Config.fromfile(CONFIG).val_evaluator))
    metric.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        sample = dataset[index]['data_samples']
        sample.pred_sem_seg = PixelData(data=change(sample.gt_sem_seg.data.clone()))
        metric.process({}, [sample.to_dict()])
    return metric.evaluate(len(dataset))


@pytest.mark.parametrize('textures', [True, False])
def test_ground_truth_has_iou_of_100(mmseg, digits, textures):
    found = score(build(digits, textures=textures))
    assert found['mIoU'] == found['aAcc'] == found['mAcc'] == 100


def test_missed_digits_lower_iou_of_their_classes(mmseg, digits):
    # Predicts background everywhere: all ten digits are missed.
    found = score(build(digits), lambda labels: torch.full_like(labels, 10))
    assert 50 / 11 < found['mIoU'] < 100 / 11


def test_reduce_zero_label_raises(mmseg, digits):
    with pytest.raises(ValueError, match='reduce_zero_label=True would drop the digit'):
        build(digits, reduce_zero_label=True)


@pytest.mark.parametrize('existing', [[], ['train']])
def test_missing_data_error_gives_command(mmseg, tmp_path, existing):
    for name in existing:
        (tmp_path / name).mkdir()
    with pytest.raises(
        FileNotFoundError, match=f'python -m demo.data --out {tmp_path}'
    ):
        build(tmp_path)


def run_without(toolbox, code):
    """Run code in a process where importing a toolbox fails."""
    code = f'import sys; sys.modules[{toolbox!r}] = None\n{code}'
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_segmentation_works_without_mmdetection():
    run_without(
        'mmdet',
        """
from demo.pretrain import build_classifier
from demo.segmentation import DigitsSegDataset
assert DigitsSegDataset.METAINFO['classes']
build_classifier()
""",
    )


def test_detection_works_without_mmsegmentation():
    run_without(
        'mmseg',
        """
from demo.detection import DigitsDetDataset, DigitsPanopticDataset
assert DigitsDetDataset.METAINFO['classes']
""",
    )


def test_scenes_work_without_toolboxes():
    run_without(
        'mmdet',
        """
sys.modules['mmseg'] = None
from demo import pretrain_backbone, write_digits
from demo.pretrain import build_classifier
try:
    build_classifier()
except ImportError as error:
    assert '--no-backbone' in str(error), error
else:
    raise AssertionError('built without a toolbox')
""",
    )


def test_both_toolboxes_build_same_backbone(mmseg, monkeypatch):
    pytest.importorskip('mmdet')
    torch.manual_seed(0)
    detection = pretrain.build_classifier().state_dict()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        pretrain.importlib.util,
        'find_spec',
        lambda name: None if name == 'mmdet' else find_spec(name),
    )
    torch.manual_seed(0)
    segmentation = pretrain.build_classifier().state_dict()
    assert list(detection) == list(segmentation)
    for name, value in detection.items():
        assert torch.equal(value, segmentation[name]), name
