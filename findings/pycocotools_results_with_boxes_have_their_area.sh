#!/usr/bin/env bash
# pycocotools 2.0.11: if results of masks also have boxes, the precisions of masks by size are
# those of sizes of boxes, without a word.
#
# COCO.loadRes sets the area of a result to that of its mask, or, if its first result has a
# box, to that of the box, also for an evaluation with 'segm'. False objects are then counted
# in another size. A detector finds eight objects, four of them small, and four thin diagonals
# of 180 pixels that are no objects, with boxes of 62 x 60: masks alone have precisions of
# 0.67 in all, 0.5 for small and 1 for medium objects. With boxes in the same results they
# are 0.67, 1 and 0.5. Remove boxes before an evaluation of masks, as MMDetection does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 pycocotools==2.0.11
cd "$folder"
cat > areas.py <<'PYTHON'
import contextlib
import io
from importlib.metadata import version

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HEIGHT, WIDTH = 100, 900


def annotation(pixels, **kwargs):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order='F')
    mask[pixels] = 1
    encoded = rle.encode(mask)
    box = rle.toBbox(encoded).tolist()
    return dict(image_id=1, category_id=1, bbox=box, segmentation=encoded, **kwargs)


def square(index):
    """Return the pixels of a small square, or from the fifth on of a medium one."""
    side = 20 if index < 4 else 60
    return slice(20, 20 + side), slice(100 * index, 100 * index + side)


def diagonal(index):
    """Return the pixels of a line that is three pixels wide."""
    rows = np.repeat(np.arange(60), 3)
    return 30 + rows, 100 * index + rows + np.tile(np.arange(3), 60)


def precisions(boxes):
    """Return the precisions of masks: of all, small and medium objects."""
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=1, height=HEIGHT, width=WIDTH)],
        categories=[dict(id=1)],
        annotations=[
            annotation(square(index), id=index + 1, iscrowd=0, area=400 if index < 4 else 3600)
            for index in range(8)
        ],
    )
    results = [annotation(square(index), score=0.5) for index in range(8)]
    results += [annotation(diagonal(index), score=0.9) for index in range(4)]
    for result in results:
        if not boxes:
            del result['bbox']
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), 'segm')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [round(float(evaluation.stats[index]), 2) for index in (0, 3, 4)]


seen = {'masks': precisions(boxes=False), 'masks and boxes': precisions(boxes=True)}
print(f'pycocotools {version("pycocotools")}: {seen}')
assert seen == {
    'masks': [0.67, 0.5, 1.0],
    'masks and boxes': [0.67, 1.0, 0.5],
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore areas.py
