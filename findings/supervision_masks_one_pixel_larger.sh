#!/usr/bin/env bash
# supervision 0.31.2: DetectionDataset.from_coco draws polygons one pixel larger to the right
# and below than COCO does, so masks that are right for COCO are wrong for supervision.
#
# It fills polygons with OpenCV, which also paints the pixels that the outline touches. A
# square of 10 x 10 pixels becomes 11 x 11: an IoU of 0.83 with the mask of pycocotools. The
# mask mAP of a detector that finds all of the 10 squares exactly is 1 by pycocotools and 0.7
# by supervision, with the same file of annotations. Squares of 32 pixels have 0.9.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q supervision==0.31.2 numpy==2.4.6 pycocotools==2.0.11 \
    opencv-python-headless==5.0.0.93
cd "$folder"
cat > masks.py <<'PYTHON'
import contextlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
import supervision
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from supervision import DetectionDataset, Detections
from supervision.metrics import MeanAveragePrecision, MetricTarget


def write(side):
    """Write ten squares as polygons of COCO."""
    Path('images').mkdir(exist_ok=True)
    cv2.imwrite('images/1.png', np.zeros((100, 500, 3), np.uint8))
    annotations = []
    for index in range(10):
        left, top, right, bottom = 50 * index, 10, 50 * index + side, 10 + side
        annotations.append(
            dict(
                id=index + 1,
                image_id=1,
                category_id=1,
                bbox=[left, top, side, side],
                area=side * side,
                iscrowd=0,
                segmentation=[[left, top, right, top, right, bottom, left, bottom]],
            )
        )
    image = dict(id=1, file_name='1.png', height=100, width=500)
    category = dict(id=1, name='square', supercategory='')
    coco = dict(images=[image], categories=[category], annotations=annotations)
    Path('truth.json').write_text(json.dumps(coco))


def scores(side):
    """Return areas of a mask and the mAP of exact masks, by pycocotools and supervision."""
    write(side)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO('truth.json')
        masks = [coco.annToMask(each) for each in coco.dataset['annotations']]
        results = [
            dict(image_id=1, category_id=1, score=0.9, segmentation=rle.encode(mask))
            for mask in map(np.asfortranarray, masks)
        ]
        evaluation = COCOeval(coco, coco.loadRes(results), 'segm')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    dataset = DetectionDataset.from_coco('images', 'truth.json', force_masks=True)
    (_, _, truth) = next(iter(dataset))
    found = Detections(
        xyxy=truth.xyxy,
        mask=np.array(masks, bool),
        confidence=np.full(len(masks), 0.9),
        class_id=truth.class_id,
    )
    metric = MeanAveragePrecision(metric_target=MetricTarget.MASKS)
    score = metric.update(found, truth).compute().map50_95
    return [
        (int(masks[0].sum()), round(float(evaluation.stats[0]), 2)),
        (int(truth.mask[0].sum()), round(float(score), 2)),
    ]


seen = {side: scores(side) for side in (10, 32)}
print(f'supervision {supervision.__version__}: {seen}')
assert seen == {
    10: [(100, 1.0), (121, 0.7)],
    32: [(1024, 1.0), (1089, 0.9)],
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore masks.py
