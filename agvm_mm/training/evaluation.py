"""Checks of what validates a run, which would fail hours after its start."""

import ast
import inspect
from collections import Counter
from importlib import import_module

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner
from mmengine.utils import digit_version

CITYSCAPES = 'cityscapesscripts.evaluation.eval{}LevelSemanticLabeling'
BEHIND_METRICS = {
    'LVISMetric': (
        'lvis.eval',
        'pip install git+https://github.com/lvis-dataset/lvis-api.git',
    ),
    'CityScapesMetric': (CITYSCAPES.format('Instance'), 'pip install "numpy<2.4"'),
    'CityscapesMetric': (CITYSCAPES.format('Pixel'), 'pip install "numpy<2.4"'),
}
"""Module that does the work of a metric, and what to do if it is too old for NumPy."""


def check_evaluator(runner: Runner) -> None:
    """Check the metrics of a run's validation, if it has one.

    Known are the faults of mmdet 3.3.0, of pycocotools 2.0.11, of lvis 0.5.3 and of
    cityscapesscripts 2.3.0. Other metrics are not looked at.

    Raises:
        ValueError: If a metric would fail or be wrong.
    """
    # A custom loop may have none.
    evaluator = getattr(runner.val_loop, 'evaluator', None)
    for metric in getattr(evaluator, 'metrics', ()):
        kinds = {kind.__name__ for kind in type(metric).__mro__}
        behind = kinds & BEHIND_METRICS.keys()
        for name in behind:
            check_numpy_names(name, *BEHIND_METRICS[name])
        if 'CocoMetric' in kinds and not behind:
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


def check_numpy_names(metric: str, module: str, fix: str) -> None:
    """Check that the module of a metric uses no name that this NumPy does not have.

    ``fix`` says what to do otherwise.

    Raises:
        ValueError: If it does.
    """
    used = [
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(import_module(module))))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == 'np'
    ]
    lost = [name for name in used if not hasattr(np, name)]
    if lost:
        raise ValueError(
            f'val_evaluator: {metric} needs {module}, which uses np.{lost[0]}, and '
            f'numpy {np.__version__} has none; {fix}'
        )


def is_new_numpy() -> bool:
    """Return whether this is NumPy 1.24 or later, which dropped much of before."""
    return digit_version(np.__version__) >= digit_version('1.24')
