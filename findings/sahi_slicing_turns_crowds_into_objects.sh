#!/usr/bin/env bash
# sahi 0.12.8: slice_coco writes iscrowd=0 for crowds, which then count as missed objects.
#
# A crowd of COCO is a group of objects with one mask, and objects found in it, or not, are
# left out of the evaluation. sahi does not read iscrowd, so a set that it has cut has objects
# in place of crowds. A detector that finds all of the four objects, and nothing in the four
# crowds, has a mAP of 1 by pycocotools with the original annotations and of 0.5 with those of
# one slice as large as the image. Training takes the crowds for objects, too. There is a
# warning that masks in RLE are dropped, none about crowds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q sahi==0.12.8 numpy==2.4.6 pycocotools==2.0.11 \
    opencv-python==5.0.0.93
cd "$folder"
cat > slice.py <<'PYTHON'
import contextlib
import io
import json
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sahi.slicing import slice_coco

Path('images').mkdir()
cv2.imwrite('images/1.png', np.zeros((200, 200, 3), np.uint8))
annotations = []
for index in range(8):
    left, top = 50 * (index % 4), 10 + 100 * (index // 4)
    mask = np.zeros((200, 200), np.uint8, order='F')
    mask[top : top + 40, left : left + 40] = 1
    crowd = rle.encode(mask)
    crowd['counts'] = crowd['counts'].decode()
    outline = [left, top, left + 40, top, left + 40, top + 40, left, top + 40]
    annotations.append(
        dict(
            id=index + 1,
            image_id=1,
            category_id=1,
            bbox=[left, top, 40, 40],
            area=1600,
            iscrowd=index // 4,
            segmentation=crowd if index // 4 else [outline],
        )
    )
image = dict(id=1, file_name='1.png', height=200, width=200)
category = dict(id=1, name='person', supercategory='')
coco = dict(images=[image], categories=[category], annotations=annotations)
Path('truth.json').write_text(json.dumps(coco))


def score(file):
    """Return crowds and the mAP of a detector that finds the four objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(file)
        found = [
            dict(image_id=1, category_id=1, bbox=each['bbox'], score=0.9)
            for each in annotations[:4]
        ]
        evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    crowds = sum(each['iscrowd'] for each in truth.dataset['annotations'])
    return crowds, round(float(evaluation.stats[0]), 2)


_, sliced = slice_coco(
    'truth.json',
    'images',
    'sliced',
    output_dir='slices',
    slice_height=200,
    slice_width=200,
    verbose=False,
)
seen = {'truth': score('truth.json'), 'sliced': score(sliced)}
print(f'sahi {version("sahi")}: {seen}')
assert seen == {'truth': (4, 1.0), 'sliced': (0, 0.5)}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore slice.py 2> log | tail -n 1
