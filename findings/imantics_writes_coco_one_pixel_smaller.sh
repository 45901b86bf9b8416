#!/usr/bin/env bash
# imantics 0.1.12: export(style='coco') writes boxes and polygons that lack the last row and
# column of each mask, so a detector that learns them perfectly cannot reach a mAP of 1.
#
# Polygons go through the centers of the outermost pixels, and a box from the first to the last
# pixel, where COCO has both around the pixels; `area` is that of the mask. A mask of 10 x 10
# pixels becomes a box of 9 x 9, a polygon that pycocotools reads as 81 pixels, and an
# area of 100. Exact boxes and masks of ten such squares then have a mAP of 0.7 by pycocotools,
# and of 32 x 32 pixels 0.9.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 pycocotools==2.0.11 lxml==6.1.3 xmljson==0.2.1
"$folder/venv/bin/pip" install -q --no-deps imantics==0.1.12 opencv-python-headless==5.0.0.93
cd "$folder"
cat > export.py <<'PYTHON'
import contextlib
import io
import json
from importlib.metadata import version

import numpy as np
from imantics import Category, Image, Mask
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def scores(side):
    """Return width, pixels and area of a written square, and the mAPs of exact results."""
    image = Image(np.zeros((60, 500, 3), np.uint8))
    image.id = 1
    results = dict(bbox=[], segm=[])
    for index in range(10):
        pixels = np.zeros((60, 500), np.uint8, order='F')
        pixels[10 : 10 + side, 50 * index : 50 * index + side] = 1
        image.add(Mask(pixels.astype(bool)), category=Category('square', id=1))
        result = dict(image_id=1, category_id=1, score=0.9)
        results['bbox'].append(dict(result, bbox=[50 * index, 10, side, side]))
        results['segm'].append(dict(result, segmentation=rle.encode(pixels)))
    means = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(image.export(style='coco')))
        truth.createIndex()
        (first, *_) = truth.dataset['annotations']
        for kind, each in results.items():
            evaluation = COCOeval(truth, truth.loadRes(each), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            means.append(round(float(evaluation.stats[0]), 2))
    return int(first['bbox'][2]), int(truth.annToMask(first).sum()), int(first['area']), means


seen = {side: scores(side) for side in (10, 32)}
print(f'imantics {version("imantics")}: {seen}')
assert seen == {
    10: (9, 81, 100, [0.7, 0.7]),
    32: (31, 961, 1024, [0.9, 0.9]),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore export.py
