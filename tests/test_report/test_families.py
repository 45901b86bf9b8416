"""One update of families of stock models, with AGVM and without."""

import math
import re
from pathlib import Path

import pytest
from mmengine.config import ConfigDict
from stock import families, images, stock, zoo_page

from agvm_mm.estimators import ModuleStatistics
from agvm_mm.method.noise_scale import SignalAndNoise

pytestmark = pytest.mark.evidence

PAGE = Path(__file__).resolve().parents[2] / 'docs/zoo.md'
SSD = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'
# Models that differ in kind: two stages, a cascade, one stage, a transformer, a mask
# transformer, segmenters, a cascade of decoders, a teacher and student.
KINDS = (
    'CascadeEncoderDecoder',
    'CascadeRCNN',
    'DETR',
    'EncoderDecoder',
    'FasterRCNN',
    'MaskFormer',
    'SoftTeacher',
    'YOLOX',
)


def documented():
    """Return example and cell of one update by model: the first row of each."""
    text = PAGE.read_text(encoding='utf-8')
    rows = re.findall(r'^\| (\w+) \| .* \| `(mm[^`]*)` \| (.*) \|$', text, re.M)
    assert len(rows) > 60
    return {model: (config, cell) for model, config, cell in reversed(rows)}


DOCUMENTED = documented()


def test_update_is_the_documented_one(subtests):
    for model in KINDS:
        with subtests.test(model=model):
            config, cell = DOCUMENTED[model]
            update = families.one_update(config)
            assert (update.outcome, update.reason) == ('equal', '')
            assert zoo_page.update_cell(update) == cell


def test_page_has_no_fault():
    for config, cell in DOCUMENTED.values():
        assert cell.startswith(('equal', 'not run: ')), config


@pytest.fixture
def change_estimator(monkeypatch):
    """Return a function that changes a method of the estimator."""

    def change(method, new):
        def build(*args, **kwargs):
            estimator = build_estimator(*args, **kwargs)
            old = getattr(estimator, method)
            setattr(estimator, method, lambda *args: new(estimator, old, *args))
            return estimator

        build_estimator = families.build_estimator
        monkeypatch.setattr(families, 'build_estimator', build)

    return change


def test_other_gradients_are_found(change_estimator):
    def finish(estimator, old):
        variances = old()
        last = [p for p in estimator.parameters if p.grad is not None][-1]
        last.grad.view(-1)[0] += 1
        return variances

    change_estimator('finish', finish)
    update = families.one_update(SSD)
    assert update.outcome == 'different'
    assert update.reason.startswith('1, such as ')


def test_missing_gradients_are_found(change_estimator):
    def finish(estimator, old):
        variances = old()
        estimator.parameters[0].grad = None
        return variances

    change_estimator('finish', finish)
    assert families.one_update(SSD).outcome == 'different'


def test_variance_that_is_not_finite_is_found(change_estimator):
    bad = ModuleStatistics(math.nan, SignalAndNoise(1.0, 1.0))
    change_estimator('finish', lambda _, old: old() | dict(bbox_head=bad))
    update = families.one_update(SSD)
    assert update.outcome == 'rejected'
    assert 'bbox_head' in update.reason


def test_errors_with_agvm_are_not_those_of_the_stock_model(change_estimator):
    def fail(*_):
        raise RuntimeError('no finish')

    change_estimator('finish', fail)
    update = families.one_update(SSD)
    assert (update.outcome, update.reason) == ('failed', 'no finish')


def test_stock_models_that_do_not_train_have_a_reason(monkeypatch):
    def fail(*_):
        raise RuntimeError('no images')

    monkeypatch.setattr(families, 'make_images', fail)
    update = families.one_update(SSD)
    assert (update.outcome, update.reason) == ('not run', 'no images')
    assert update.size == families.SIZES[0]


def test_smallest_config_that_trains_is_chosen(monkeypatch):
    results = [
        stock.Result(name, 'same', family='A', modules=('backbone',), parameters=size)
        for name, size in dict(large=9, second=2, first=1, same=1).items()
    ]
    other = stock.Result('other', 'refused', family='A')
    tried = []

    def one_update(config):
        tried.append(config)
        outcome = 'not run' if config in broken else 'equal'
        return families.Update(config, outcome)

    monkeypatch.setattr(families, 'one_update', one_update)
    ((family, configs),) = families.by_family([*results, other]).items()
    assert family == ('A', ('backbone',))
    broken = ['first']
    assert families.update_family(configs).config == 'second'
    assert tried == ['first', 'second']
    broken = ['first', 'second', 'large']
    assert families.update_family(configs) == families.Update('first', 'not run')


def test_small_model_has_no_pretrained_weights_and_few_boxes():
    settings = ConfigDict(
        data_preprocessor=dict(size=(512, 1024), batch_augments=[dict(type='Pad')]),
        pretrained='open-mmlab://a',
        backbone=dict(depth=18, init_cfg=dict(type='Pretrained', checkpoint='a')),
        neck=dict(init_cfg=[dict(checkpoint='a'), dict(type='Xavier')]),
        train_cfg=dict(sampler=dict(num=512), nms_pre=2000, max_per_img=50),
        num_queries=900,
    )
    assert families.small_model(settings, 64) == dict(
        data_preprocessor=dict(size=(64, 64)),
        backbone=dict(depth=18),
        neck=dict(init_cfg=[dict(type='Xavier')]),
        train_cfg=dict(sampler=dict(num=16), nms_pre=100, max_per_img=50),
        num_queries=50,
    )
    assert settings.num_queries == 900


@pytest.mark.parametrize(
    'config, classes, semantic',
    [
        ('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', 80, 133),
        ('mmdet::yolox/yolox_x_8xb8-300e_coco.py', 80, 80),
        ('mmdet::crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py', 1, 1),
    ],
)
def test_labels_are_classes_of_every_head(config, classes, semantic):
    samples = images.make_images(stock.load(config), 4, 64)['data_samples']
    for sample in samples:
        assert 0 <= sample.gt_instances.labels.min()
        assert sample.gt_instances.labels.max() < classes
        assert 0.9 * semantic - 1 < sample.gt_sem_seg.sem_seg.max() < semantic


def test_images_are_the_same_at_each_call():
    cfg = stock.load(SSD)
    first, second = (images.make_images(cfg, 4, 64) for _ in range(2))
    for one, other in zip(first['inputs'], second['inputs'], strict=True):
        assert one.equal(other)
    assert not first['inputs'][0].equal(first['inputs'][1])
