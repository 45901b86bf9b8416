#!/usr/bin/env bash
# mean-average-precision 2024.1.5.0 and mapcalc 0.2.2: both add 1 to all widths and heights, so
# small boxes match too early, and boxes in parts of the image match without touching.
#
# Corners of Pascal VOC are pixels that belong to the box, so its width is right - left + 1. The
# documentation of both does not say so, and boxes of COCO and of detectors are edges,
# without the 1. Of 1000 boxes of 4 to 20 pixels, each edge up to two pixels off, the mAP is
# 0.213 by pycocotools and 0.263 by mean-average-precision. If coordinates are from 0 to 1, the
# 1 is as large as the image: of two boxes that do not touch, from 0.1 to 0.2 and 0.3 to 0.4,
# both find a precision of 1 at an IoU of 0.5. In percent of the image the 1000 boxes
# have 0.95. No warning. Subtract 1 from right and bottom edges, in pixels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mean-average-precision==2024.1.5.0 mapcalc==0.2.2 \
    numpy==2.4.6 pandas==2.3.3 pycocotools==2.0.11
cd "$folder"
cat > pixel.py <<'PYTHON'
import contextlib
import io
from importlib.metadata import version

import numpy as np
from mapcalc import calculate_map
from mean_average_precision import MetricBuilder
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


def by_package(truth, found, thresholds):
    """Return the mAP by mean-average-precision, with each box alone in an image."""
    metric = MetricBuilder.build_evaluation_metric('map_2d', async_mode=False, num_classes=1)
    for right, box in zip(truth, found):
        metric.add(np.array([[*box, 0, 0.9]]), np.array([[*right, 0, 0, 0]]))
    result = metric.value(
        iou_thresholds=thresholds, recall_thresholds=RECALLS, mpolicy='soft'
    )
    return round(float(result['mAP']), 3)


def by_mapcalc(truth, found):
    """Return the precision of one box at an IoU of 0.5, by mapcalc."""
    right = dict(boxes=truth.tolist(), labels=[1])
    box = dict(boxes=found.tolist(), labels=[1], scores=[0.9])
    return float(calculate_map(right, box, 0.5))


def by_coco(truth, found):
    """Return the mAP by pycocotools."""

    def annotations(boxes):
        """Return boxes as COCO has them."""
        sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        return [
            dict(id=id, image_id=id, category_id=1, bbox=box, area=1, iscrowd=0, score=0.9)
            for id, box in enumerate(sizes.tolist(), 1)
        ]

    coco = COCO()
    coco.dataset = dict(
        images=[dict(id=id) for id in range(1, len(truth) + 1)],
        categories=[dict(id=1, name='object')],
        annotations=annotations(truth),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(annotations(found)), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(float(evaluation.stats[0]), 3)


numbers = np.random.default_rng(0)
corners = numbers.integers(0, 80, (1000, 2))
truth = np.concatenate([corners, corners + numbers.integers(4, 21, (1000, 2))], axis=1)
found = truth + numbers.integers(-2, 3, truth.shape)
found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
apart = np.array([[0.1, 0.1, 0.2, 0.2]]), np.array([[0.3, 0.3, 0.4, 0.4]])
seen = {
    'pixels': (by_coco(truth, found), by_package(truth, found, THRESHOLDS)),
    'parts': by_package(truth / 100, found / 100, THRESHOLDS),
    'apart': (by_coco(*apart), by_package(*apart, 0.5), by_mapcalc(*apart)),
}
print(f'mean-average-precision {version("mean-average-precision")}: {seen}')
assert seen == {
    'pixels': (0.213, 0.263),
    'parts': 0.95,
    'apart': (0.0, 1.0, 1.0),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore pixel.py
