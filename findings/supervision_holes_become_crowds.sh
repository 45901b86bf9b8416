#!/usr/bin/env bash
# supervision 0.31.2: DetectionDataset.as_coco writes an object whose mask has a hole or two parts
# as a crowd, so pycocotools does not count it, and detectors do not learn it.
#
# COCO has runs as well for single objects, but the export takes runs and iscrowd=1 for one.
# A ring, or an object behind a pole, is enough. The documentation of as_coco speaks of the format
# only. Ten rings and ten squares, of which a detector finds the squares and no ring, have
# a recall of 0.5. Seen: all ten rings with iscrowd=1, and a recall of 1 with the exported file by
# pycocotools; 0.5 with iscrowd set to 0 in it. No warning. from_coco keeps the flag of a file
# that has one; masks of other sources have none. Set data['iscrowd'] to zeros, or 0 in the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q supervision==0.31.2 numpy==2.4.6 pycocotools==2.0.11 \
    opencv-python-headless==5.0.0.93
cd "$folder"
cat > holes.py <<'PYTHON'
import contextlib
import copy
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

cv2.imwrite('1.png', np.zeros((100, 500, 3), np.uint8))
masks = np.zeros((20, 100, 500), bool)
for index, mask in enumerate(masks):
    left, top = 50 * (index // 2), 50 * (index % 2)
    mask[top + 5 : top + 35, left + 5 : left + 35] = True
    if index % 2:
        mask[top + 15 : top + 25, left + 15 : left + 25] = False
boxes = np.array(
    [[*np.argwhere(mask).min(0)[::-1], *np.argwhere(mask).max(0)[::-1] + 1] for mask in masks]
)
truth = Detections(
    xyxy=boxes.astype(float), mask=masks, class_id=np.zeros(len(masks), int)
)
DetectionDataset(['thing'], ['1.png'], {'1.png': truth}).as_coco(annotations_path='coco.json')
exported = json.loads(Path('coco.json').read_text())
objects = json.loads(Path('coco.json').read_text())
for each in objects['annotations']:
    each['iscrowd'] = 0


def recall(annotations):
    """Return the recall of exact squares at an IoU of 0.5, by pycocotools."""
    Path('truth.json').write_text(json.dumps(annotations))
    category = annotations['categories'][0]['id']
    results = [
        dict(image_id=1, category_id=category, score=0.9, segmentation=rle.encode(mask))
        for mask in map(np.asfortranarray, masks[::2].astype(np.uint8))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO('truth.json')
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), 'segm')
        evaluation.evaluate()
        evaluation.accumulate()
    return float(evaluation.eval['recall'][0, 0, 0, -1])


seen = {
    'rings and squares': (len(masks[1::2]), len(masks[::2])),
    'crowds': sum(each['iscrowd'] for each in exported['annotations']),
    'recall': recall(exported),
    'recall without crowds': recall(objects),
}
print(f'supervision {supervision.__version__}: {seen}')
assert seen == {
    'rings and squares': (10, 10),
    'crowds': 10,
    'recall': 1.0,
    'recall without crowds': len(masks[::2]) / len(masks),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore holes.py
