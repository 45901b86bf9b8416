"""Checks of what validates a run, which would fail hours after its start."""

import inspect
import sys
from collections import Counter

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner
from mmengine.utils import digit_version


def check_evaluator(runner: Runner) -> None:
    """Check the metrics of a run's validation, if it has one.

    Known are the faults of mmdet 3.3.0, of pycocotools 2.0.11 and of lvis 0.5.3. Other
    metrics are not looked at.

    Raises:
        ValueError: If a metric would fail or be wrong.
    """
    evaluation = sys.modules.get('mmdet.evaluation')
    # A custom loop may have none.
    evaluator = getattr(runner.val_loop, 'evaluator', None)
    if evaluation is None or evaluator is None:
        return
    for metric in evaluator.metrics:
        if isinstance(metric, evaluation.LVISMetric):
            check_lvis()
        elif isinstance(metric, evaluation.CocoMetric):
            check_coco_settings(metric)
            check_annotation_ids(metric)


def check_coco_settings(metric: BaseMetric) -> None:
    """Check the arguments of mmdet's ``CocoMetric``.

    Raises:
        ValueError: If results would be -1, or an error.
    """
    name = f'val_evaluator: {type(metric).__name__}'
    if not isinstance(metric.iou_thrs, np.ndarray):
        raise ValueError(
            f'{name} with iou_thrs={metric.iou_thrs} compares its thresholds as a '
            'list, which gives -1 or an error; remove iou_thrs and name the results '
            "in metric_items=['mAP', 'mAP_50', 'mAP_75']"
        )
    if 'proposal_fast' in metric.metrics and is_new_numpy():
        raise ValueError(
            f"{name} with metric='proposal_fast' needs numpy < 1.24, there is "
            f"{np.__version__}; use metric='proposal'"
        )
    numbers = metric.proposal_nums
    if {'bbox', 'segm'} & set(metric.metrics) and (
        100 not in numbers or len(numbers) < 3
    ):
        raise ValueError(
            f'{name} with proposal_nums={tuple(numbers)} gives a mAP of -1 or an '
            'error: it takes three numbers or more, and 100 must be one of them; the '
            'default is (100, 300, 1000)'
        )


def check_annotation_ids(metric: BaseMetric) -> None:
    """Check the ids of the annotations that a ``CocoMetric`` compares with.

    pycocotools takes an id of 0 for no match.

    Raises:
        ValueError: If an id is 0 or there twice.
    """
    api = getattr(metric, '_coco_api', None)
    if api is None:  # Made from the data set at the first validation.
        return
    ids = Counter(each['id'] for each in api.dataset.get('annotations', ()))
    bad = [number for number, count in ids.items() if count > 1 or not number]
    if bad:
        raise ValueError(
            f'val_evaluator.ann_file has {len(bad)} annotation ids that are 0 or there '
            f'several times, the first is {bad[0]}: COCO would count their objects as '
            'missed; number the annotations from 1'
        )


def check_lvis() -> None:
    """Check that the package lvis works with this NumPy.

    Raises:
        ValueError: If it does not.
    """
    from lvis import eval as evaluation

    if is_new_numpy() and 'np.float)' in inspect.getsource(evaluation):
        raise ValueError(
            'val_evaluator: lvis 0.5.3 of the package index needs numpy < 1.24, there '
            f'is {np.__version__}; pip install '
            'git+https://github.com/lvis-dataset/lvis-api.git'
        )


def is_new_numpy() -> bool:
    """Return whether this is NumPy 1.24 or later, which dropped much of before."""
    return digit_version(np.__version__) >= digit_version('1.24')
