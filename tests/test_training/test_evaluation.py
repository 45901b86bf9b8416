"""Metrics that would fail at the first validation are refused when a run starts."""

import json
import linecache
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from mmdet.evaluation import CityScapesMetric, CocoMetric, LVISMetric
from mmengine.evaluator import Evaluator
from runners import make_runner

from agvm_mm.training import evaluation

CORNERS = [[10, 10, 40, 50], [10, 10, 60, 50], [0, 0, 90, 90], [5, 5, 99, 99]]


def metric(tmp_path, ids=(1, 2, 3, 4), **kwargs):
    """Build a metric on four images with one object each."""
    content = dict(
        images=[dict(id=i, width=100, height=100) for i in range(4)],
        categories=[dict(id=1, name='a')],
        annotations=[
            dict(id=number, image_id=i, category_id=1, area=100, iscrowd=0)
            | dict(bbox=[x, y, right - x, bottom - y])
            for i, (number, (x, y, right, bottom)) in enumerate(
                zip(ids, CORNERS, strict=True)
            )
        ],
    )
    file = tmp_path / 'annotations.json'
    file.write_text(json.dumps(content))
    return CocoMetric(ann_file=str(file), **kwargs)


def check(*metrics):
    evaluator = Evaluator(list(metrics))
    evaluation.check_evaluator(
        SimpleNamespace(val_loop=SimpleNamespace(evaluator=evaluator))
    )


def worst_map_of_a_perfect_detector(found):
    found.dataset_meta = dict(classes=('a',))
    for index, box in enumerate(CORNERS):
        predicted = dict(
            bboxes=torch.tensor([box], dtype=torch.float),
            scores=torch.ones(1),
            labels=torch.zeros(1, dtype=torch.long),
        )
        found.process(
            {}, [dict(img_id=index, ori_shape=(100, 100), pred_instances=predicted)]
        )
    results = found.evaluate(4)
    return min(results[f'coco/bbox_mAP{iou}'] for iou in ('', '_50', '_75'))


def test_loop_without_an_evaluator_passes():
    evaluation.check_evaluator(SimpleNamespace(val_loop=SimpleNamespace()))
    evaluation.check_evaluator(SimpleNamespace(val_loop=None))


@pytest.mark.parametrize(
    'kwargs', [{}, dict(proposal_nums=(10, 100, 300)), dict(metric='proposal')]
)
def test_right_settings_pass(tmp_path, kwargs):
    check(metric(tmp_path, **kwargs))
    if 'metric' not in kwargs:
        assert worst_map_of_a_perfect_detector(metric(tmp_path, **kwargs)) == 1


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (
            dict(iou_thrs=[0.5, 0.75]),
            r'CocoMetric with iou_thrs=\[0.5, 0.75\] compares',
        ),
        (dict(proposal_nums=(1, 10, 50)), r'with proposal_nums=\(1, 10, 50\) gives'),
        (dict(proposal_nums=(100,)), r'with proposal_nums=\(100,\) gives a mAP of -1'),
        (dict(ids=(0, 1, 2, 3)), 'has 1 annotation ids that are 0 .* first is 0: COCO'),
        (dict(ids=(1, 2, 2, 3)), 'has 1 annotation ids .* the first is 2: COCO'),
    ],
)
def test_settings_with_which_a_perfect_detector_is_not_perfect(
    tmp_path, kwargs, message
):
    with pytest.raises(ValueError, match=message):
        check(metric(tmp_path, **kwargs))
    try:
        assert worst_map_of_a_perfect_detector(metric(tmp_path, **kwargs)) < 1
    except (IndexError, ValueError):
        pass


def test_fast_recall_needs_an_old_numpy(tmp_path):
    found = metric(tmp_path, metric='proposal_fast')
    if evaluation.is_new_numpy():
        with pytest.raises(ValueError, match="'proposal_fast' needs numpy < 1.24"):
            check(found)
    else:
        check(found)


@pytest.mark.parametrize(
    'kind, lost', [(LVISMetric, 'float'), (CityScapesMetric, 'in1d')]
)
def test_package_that_is_too_old_for_numpy_is_named(monkeypatch, tmp_path, kind, lost):
    """Names that are gone, but for those in comments and longer ones."""
    module, _ = evaluation.BEHIND_METRICS[kind.__name__]
    file = tmp_path / f'old_{lost}.py'
    file.write_text(f'import numpy as np\n\ndef f(x):\n    return np.{lost}(x)\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, module, import_module(file.stem))
    monkeypatch.delattr(evaluation.np, lost, raising=False)
    found = kind.__new__(kind)
    found.tmp_dir = None
    with pytest.raises(ValueError, match=rf'needs {module}, which uses np\.{lost},'):
        check(found)
    file.write_text(f'import numpy as np\n\n# np.{lost}\nnp.float32, np.isin\n')
    linecache.checkcache()
    check(found)


@pytest.mark.parametrize('wrapper', ['OptimWrapper', 'AGVMOptimWrapper'])
def test_run_is_refused_before_its_first_update(tmp_path, wrapper):
    runner = make_runner(
        tmp_path,
        dict(type=wrapper, optimizer=dict(type='SGD', lr=0.1)),
        images=16,
        batch_size=2,
        train_cfg=dict(type='LargeBatchTrainLoop', max_epochs=1, total_batch_size=8),
        hooks=[dict(type='VarianceSyncHook')] if wrapper != 'OptimWrapper' else [],
        val_cfg=dict(),
        val_dataloader=dict(
            dataset=dict(type='ImageDataset', images=4),
            sampler=dict(type='DefaultSampler'),
        ),
        val_evaluator=[metric(tmp_path, proposal_nums=(1, 10, 50))],
    )
    with pytest.raises(ValueError, match='gives a mAP of -1'):
        runner.train()
    assert runner.iter == 0
