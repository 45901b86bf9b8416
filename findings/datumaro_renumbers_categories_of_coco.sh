#!/usr/bin/env bash
# datumaro 1.13.12: COCO annotations that are read and written again have other category ids, so
# the results of a detector are compared with other classes.
#
# It writes the place of a category in the list plus 1, whatever ids the file had, while ids of
# images and annotations stay. COCO's own 80 ids, up to 90 with gaps, become 1 to 80, of which
# 11 are as before. Reading and writing is enough, and so is all that datumaro is used for:
# filters, splits, merges. Of a detector that finds one object of each of the 80 classes
# exactly, pycocotools gives a mAP of 1 with the file that went in, and of 0.14 with the one
# that came out. No warning (there is one for an id of 0). Names are kept: map ids by them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datumaro==1.13.12 numpy==2.4.6 pycocotools==2.0.11 \
    opencv-python-headless==4.14.0.94
cd "$folder"
cat > ids.py <<'PYTHON'
import contextlib
import io
import json
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from datumaro import Dataset
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# The ids of COCO.
IDS = sorted({*range(1, 91)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
BOXES = [[20 * (index % 10), 20 * (index // 10), 16, 16] for index in range(len(IDS))]

Path('in/images/val').mkdir(parents=True)
Path('in/annotations').mkdir()
cv2.imwrite('in/images/val/1.png', np.zeros((200, 200, 3), np.uint8))
common = dict(image_id=1, area=256, iscrowd=0, segmentation=[])
coco = dict(
    images=[dict(id=1, file_name='1.png', height=200, width=200)],
    categories=[dict(id=id, name=f'class {id}', supercategory='') for id in IDS],
    annotations=[
        dict(common, id=100 + id, category_id=id, bbox=box) for id, box in zip(IDS, BOXES)
    ],
)
Path('in/annotations/instances_val.json').write_text(json.dumps(coco))
Dataset.import_from('in', 'coco_instances').export('out', 'coco_instances')


def score(folder):
    """Return how many objects keep their class by id and by name, and the mAP."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(f'{folder}/annotations/instances_val.json')
        found = [
            dict(image_id=1, category_id=id, bbox=box, score=0.9)
            for id, box in zip(IDS, BOXES)
        ]
        evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    classes = {100 + id: id for id in IDS}
    by_id = sum(each['category_id'] == classes[each['id']] for each in truth.anns.values())
    by_name = sum(
        truth.cats[each['category_id']]['name'] == f'class {classes[each["id"]]}'
        for each in truth.anns.values()
    )
    return by_id, by_name, round(float(evaluation.stats[0]), 2)


seen = {folder: score(folder) for folder in ('in', 'out')}
print(f'datumaro {version("datumaro")}: {seen}')
assert seen == {'in': (80, 80, 1.0), 'out': (11, 80, 0.14)}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore ids.py
