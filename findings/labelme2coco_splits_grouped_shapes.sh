#!/usr/bin/env bash
# labelme2coco 0.2.6: an object that was drawn as several polygons with one group_id becomes several
# objects.
#
# labelme marks polygons that belong to one object, such as a car on both sides of a pole, with the
# same group_id; its own example for COCO makes one annotation of them. labelme2coco does not read
# group_id. Nothing warns, and the README does not mention it. Objects are then counted more than
# once, their boxes are those of the parts, and a detector that finds them whole is wrong. Seen with
# four objects, each in three equal parts between two poles: twelve annotations, and a recall
# of 0 at an IoU of 0.5 by pycocotools for the four exact masks; 1 with annotations that have all
# polygons of a group.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q labelme2coco==0.2.6 sahi==0.12.8 numpy==2.4.6 \
    pycocotools==2.0.11 opencv-python==5.0.0.93 pillow==13.0.0
cd "$folder"
cat > groups.py <<'PYTHON'
import contextlib
import io
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from labelme2coco.labelme2coco import get_coco_from_labelme_folder
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIZE, OBJECTS = 400, 4
Path('images').mkdir()
Image.new('RGB', (SIZE, SIZE)).save('images/1.png')
shapes, masks, grouped = [], np.zeros((OBJECTS, SIZE, SIZE), np.uint8), []
for group, mask in enumerate(masks):
    top, outlines = 100 * group + 10, []
    for left in (20, 80, 140):
        mask[top : top + 60, left : left + 40] = 1
        corners = [[left, top], [left + 40, top], [left + 40, top + 60], [left, top + 60]]
        outlines.append([number for corner in corners for number in corner])
        shapes.append(
            dict(label='car', points=corners, group_id=group, shape_type='polygon', flags={})
        )
    grouped.append(
        dict(
            id=group + 1,
            image_id=1,
            category_id=0,
            segmentation=outlines,
            bbox=[20, top, 160, 60],
            area=7200,
            iscrowd=0,
        )
    )
drawn = dict(
    version='5.5.0',
    flags={},
    shapes=shapes,
    imagePath='1.png',
    imageData=None,
    imageHeight=SIZE,
    imageWidth=SIZE,
)
Path('images/1.json').write_text(json.dumps(drawn))


def recall(coco):
    """Return the recall of the exact masks at an IoU of 0.5, by pycocotools."""
    Path('truth.json').write_text(json.dumps(coco))
    results = [
        dict(image_id=1, category_id=0, score=0.9, segmentation=rle.encode(np.asfortranarray(mask)))
        for mask in masks
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO('truth.json')
        evaluation = COCOeval(truth, truth.loadRes(results), 'segm')
        evaluation.evaluate()
        evaluation.accumulate()
    return float(evaluation.eval['recall'][0, 0, 0, -1])


with contextlib.redirect_stdout(io.StringIO()):
    exported = get_coco_from_labelme_folder('images').json
exported['info'] = {}
seen = {
    'objects': OBJECTS,
    'annotations': len(exported['annotations']),
    'recall': recall(exported),
    'recall with groups': recall({**exported, 'annotations': grouped}),
}
print(f'labelme2coco {version("labelme2coco")}, sahi {version("sahi")}: {seen}')
assert seen == {
    'objects': 4,
    'annotations': 12,
    'recall': 0.0,
    'recall with groups': 1.0,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore groups.py 2> log | tail -n 1
