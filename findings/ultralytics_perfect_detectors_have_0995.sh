#!/usr/bin/env bash
# ultralytics 8.4.190: a detector that finds all objects and nothing else has an AP of 0.995, and
# other APs are up to 0.01 under those of COCO.
#
# The code says "101-point interpolation (COCO)". COCO takes the mean of the precisions at 101
# recalls. Ultralytics adds up the trapezoids between them, with a precision of 0 at the last
# recall that is reached, 1 as well, which takes half of the last interval away. Ten exact boxes for
# ten objects have 0.995 at each IoU, and 1 by pycocotools; exact boxes for five of them 0.495,
# and 0.505. So the mAP that training prints and the one of COCO's own evaluation differ for the
# same boxes, and no detector reaches 1. No warning, and the documentation does not say so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 pycocotools==2.0.11 pillow==13.0.0 \
    opencv-python-headless==5.0.0.93 matplotlib==3.11.2 requests==2.34.2 pyyaml==6.0.4 psutil==7.2.2
# Installed without CUDA's torch, which torchvision's operators need; nothing here uses them.
"$folder/venv/bin/pip" install -q --no-deps torchvision==0.28.0 ultralytics==8.4.190
cd "$folder"
export YOLO_CONFIG_DIR=$folder
cat > perfect.py <<'PYTHON'
import contextlib
import io
import json
from pathlib import Path

import numpy as np
import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # This torch has no CUDA: name the operators that the import looks for.
    operators = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        operators.define(f'{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor')

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import ultralytics
from ultralytics.utils.metrics import ap_per_class

OBJECTS = 10
boxes = [[50 * index, 10, 40, 40] for index in range(OBJECTS)]


def by_ultralytics(found):
    """Return the mAP if the first objects are found exactly, and nothing else."""
    hits = np.ones((found, 10), bool)
    scores, classes = np.linspace(0.9, 0.5, found), np.zeros(found)
    precisions = ap_per_class(hits, scores, classes, np.zeros(OBJECTS))[5]
    return round(float(precisions.mean()), 3)


def by_pycocotools(found):
    """Return the same of pycocotools."""
    common = dict(image_id=1, category_id=1)
    truth = dict(
        images=[dict(id=1, width=500, height=100)],
        categories=[dict(id=1, name='thing')],
        annotations=[
            dict(common, id=index + 1, bbox=box, area=1600, iscrowd=0)
            for index, box in enumerate(boxes)
        ],
    )
    Path('truth.json').write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO('truth.json')
        results = coco.loadRes(
            [
                dict(common, bbox=box, score=float(score))
                for box, score in zip(boxes[:found], np.linspace(0.9, 0.5, found))
            ]
        )
        evaluation = COCOeval(coco, results, 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(float(evaluation.stats[0]), 3)


def mean_of_points(found):
    """Return the mean precision at 101 recalls."""
    return round(float((np.arange(101) <= 100 * found / OBJECTS).mean()), 3)


numbers = (10, 5)
seen = {
    'ultralytics': [by_ultralytics(found) for found in numbers],
    'pycocotools': [by_pycocotools(found) for found in numbers],
}
print(f'ultralytics {ultralytics.__version__}: {seen}')
assert seen == {
    'ultralytics': [0.995, 0.495],
    'pycocotools': [mean_of_points(found) for found in numbers],
}, 'the behavior has changed'
assert seen['pycocotools'] == [1.0, 0.505]
PYTHON
venv/bin/python -W ignore perfect.py | tail -n 1
