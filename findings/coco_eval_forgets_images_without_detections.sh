#!/usr/bin/env bash
# coco-eval 0.0.4: CocoEvaluator leaves out every image for which a detector finds nothing, so its
# missed objects do not count.
#
# It takes the images to evaluate from the results, where an image without a detection does not
# occur. Torchvision's and DETR's evaluator, from which it comes, has the ids of all images as
# keys. Of four images with one object each, of which a detector finds two exactly and nothing
# else, the mAP and the recall are 0.5 by pycocotools. Seen: 1 and 1. The same results with a
# box of no use in each of the other images have 0.5 both times. No warning, and the
# documentation does not name such images. A detector that is silent more often is rated better.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q coco-eval==0.0.4 pycocotools==2.0.11 numpy==2.4.6 torch==2.13.0
cd "$folder"
cat > silent.py <<'PYTHON'
import contextlib
import copy
import io
import json
from importlib.metadata import version
from pathlib import Path

from coco_eval import CocoEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

IMAGES = (1, 2, 3, 4)
BOX = [10, 10, 40, 40]
truth = dict(
    images=[dict(id=number, width=100, height=100) for number in IMAGES],
    categories=[dict(id=1, name='thing')],
    annotations=[
        dict(id=number, image_id=number, category_id=1, bbox=BOX, area=1600, iscrowd=0)
        for number in IMAGES
    ],
)
Path('truth.json').write_text(json.dumps(truth))
coco = COCO('truth.json')


def result(image, box, score):
    """Return a box in the format of COCO."""
    return dict(image_id=image, category_id=1, bbox=box, score=score)


def by_pycocotools(results):
    """Return mAP and average recall."""
    evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return round(float(evaluation.stats[0]), 2), round(float(evaluation.stats[8]), 2)


def by_coco_eval(results):
    """Return the same of CocoEvaluator, with batches of two images."""
    evaluator = CocoEvaluator(coco, ['bbox'])
    for batch in (IMAGES[::2], IMAGES[1::2]):
        evaluator.update([each for each in results if each['image_id'] in batch])
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    evaluator.summarize()
    stats = evaluator.coco_eval['bbox'].stats
    return round(float(stats[0]), 2), round(float(stats[8]), 2)


found = [result(number, BOX, 0.9) for number in IMAGES[:2]]
useless = [result(number, [80, 80, 5, 5], 0.1) for number in IMAGES[2:]]
with contextlib.redirect_stdout(io.StringIO()):
    seen = {
        'pycocotools': (by_pycocotools(found), by_pycocotools(found + useless)),
        'coco-eval': (by_coco_eval(found), by_coco_eval(found + useless)),
    }
print(f'coco-eval {version("coco-eval")}: {seen}')
share = 2 / len(IMAGES)
# COCO reads precisions at 101 recalls, of which 51 are at most 0.5.
half = (round(51 / 101, 2), share)
assert seen == {
    'pycocotools': (half, half),
    'coco-eval': ((1.0, 1.0), half),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore silent.py | tail -n 1
