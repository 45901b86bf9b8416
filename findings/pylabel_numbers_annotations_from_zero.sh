#!/usr/bin/env bash
# pylabel 0.1.55: ExportToCoco numbers annotations from 0, which pycocotools takes for no match,
# so the first object of a set counts as missed by every detector.
#
# pycocotools stores for each result the id of the object that it matches, with 0 for none. The
# id that pylabel writes is the row of its table, whatever ids the imported file had. A COCO
# file with four objects, with ids of 1 to 4, is imported and exported again. Of a detector
# that finds all four exactly, pycocotools gives a mAP of 1 with the file that went in and of
# 0.56 with the one that came out, and recalls of 1 and 0.75. No warning. Add 1 to the ids.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pylabel==0.1.55 numpy==2.4.6 pandas==2.3.3 pycocotools==2.0.11 \
    opencv-python==5.0.0.93
cd "$folder"
cat > ids.py <<'PYTHON'
import contextlib
import io
import json
from importlib.metadata import version
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pylabel import importer

boxes = [[50 * index, 10, 40, 40] for index in range(4)]
annotations = [
    dict(
        id=index + 1, image_id=1, category_id=1, bbox=box, area=1600, iscrowd=0, segmentation=[]
    )
    for index, box in enumerate(boxes)
]
image = dict(id=1, file_name='1.png', height=100, width=200)
category = dict(id=1, name='object', supercategory='')
coco = dict(images=[image], categories=[category], annotations=annotations)
Path('in.json').write_text(json.dumps(coco))
importer.ImportCoco('in.json', path_to_images='.').export.ExportToCoco('out.json')


def score(file):
    """Return ids, mAP and recall of a detector that finds all objects exactly."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(file)
        [id] = truth.getImgIds()
        found = [
            dict(image_id=id, category_id=1, bbox=box, score=0.9 - 0.1 * index)
            for index, box in enumerate(boxes)
        ]
        evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ids = [each['id'] for each in truth.dataset['annotations']]
    return ids, round(float(evaluation.stats[0]), 2), round(float(evaluation.stats[8]), 2)


seen = {'in': score('in.json'), 'out': score('out.json')}
print(f'pylabel {version("pylabel")}: {seen}')
assert seen == {
    'in': ([1, 2, 3, 4], 1.0, 1.0),
    'out': ([0, 1, 2, 3], 0.56, 0.75),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore ids.py | tail -n 1
