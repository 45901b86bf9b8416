#!/usr/bin/env bash
# tidecv 1.0.1: a class without a single object, but with a false positive, counts as an AP of 0 in
# the mAP, so that one box of such a class can halve it.
#
# COCO leaves classes without objects out of the mean; TIDE leaves a class out only if it has no
# boxes, either. Parts of a data set lack many of its classes. Ten classes with one object
# each, all found exactly, have a mAP of 100 by both. With a box of each of ten other classes,
# which no image has, however low its score, pycocotools still has 100, and TIDE 50. No warning,
# and the documentation calls it a drop-in replacement for COCO's evaluation. Give TIDE no boxes
# of such classes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 pycocotools==2.0.11 seaborn==0.13.2 appdirs==1.4.4 \
    opencv-python-headless==5.0.0.93 matplotlib==3.11.2 pandas==3.1.1
"$folder/venv/bin/pip" install -q --no-deps tidecv==1.0.1
cd "$folder"
cat > absent.py <<'PYTHON'
import contextlib
import io
import json
from importlib.metadata import version
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tidecv import TIDE
from tidecv.data import Data

PRESENT, ABSENT = range(1, 11), range(11, 21)
BOX = [10, 10, 40, 40]


def result(kind, score):
    """Return a box of a class in the only image."""
    return dict(image_id=1, category_id=kind, bbox=BOX, score=score)


def by_tide(results):
    """Return the mAP of TIDE at an IoU of 0.5, in percent."""
    truth, found = Data('truth'), Data('found')
    truth.add_image(1, '1.png')
    for kind in (*PRESENT, *ABSENT):
        truth.add_class(kind, str(kind))
    for kind in PRESENT:
        truth.add_ground_truth(1, kind, BOX, None)
    for each in results:
        found.add_detection(1, each['category_id'], each['score'], each['bbox'], None)
    return round(TIDE().evaluate(truth, found, mode=TIDE.BOX).ap, 2)


def by_pycocotools(results):
    """Return the mAP of COCO at an IoU of 0.5, in percent."""
    truth = dict(
        images=[dict(id=1, width=100, height=100)],
        categories=[dict(id=kind, name=str(kind)) for kind in (*PRESENT, *ABSENT)],
        annotations=[
            dict(id=kind, image_id=1, category_id=kind, bbox=BOX, area=1600, iscrowd=0)
            for kind in PRESENT
        ],
    )
    Path('truth.json').write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO('truth.json')
        evaluation = COCOeval(coco, coco.loadRes(results), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(100 * float(evaluation.stats[1]), 2)


exact = [result(kind, 0.9) for kind in PRESENT]
false = [result(kind, 0.01) for kind in ABSENT]
seen = {
    'tidecv': (by_tide(exact), by_tide(exact + false)),
    'pycocotools': (by_pycocotools(exact), by_pycocotools(exact + false)),
}
print(f'tidecv {version("tidecv")}: {seen}')
assert seen == {
    'tidecv': (100.0, 50.0),
    'pycocotools': (100.0, 100.0),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore absent.py | tail -n 1
