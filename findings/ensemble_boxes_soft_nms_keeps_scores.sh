#!/usr/bin/env bash
# ensemble-boxes 1.0.9: soft_nms returns the scores that it was given, not those that it has
# lowered, so a second box on an object keeps its rank.
#
# Soft-NMS (Bodla et al., 2017) keeps overlapping boxes and lowers their scores. The package
# lowers a copy, takes from it which boxes stay, and returns the old scores. Two objects have
# boxes of 0.9 and 0.7, and the first a second box of 0.8 with an IoU of 0.82: by the paper
# its score is 0.8 * exp(-0.82^2 / 0.5) = 0.21, so it comes last. Seen: 0.8, in second place.
# The average precision by pycocotools is 0.83 in place of 1, as without any NMS.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ensemble-boxes==1.0.9 numpy==2.4.6 pycocotools==2.0.11
cd "$folder"
cat > soft.py <<'PYTHON'
import contextlib
import io
import math
from importlib.metadata import version

from ensemble_boxes import soft_nms
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# In parts of an image of 100 x 100 pixels.
FIRST, SECOND, OTHER = [0.1, 0.1, 0.3, 0.3], [0.12, 0.1, 0.32, 0.3], [0.6, 0.6, 0.8, 0.8]


def precision(boxes, scores):
    """Return the average precision at an IoU of 0.5, of the two objects."""

    def pixels(box):
        left, top, right, bottom = (100 * float(each) for each in box)
        return [left, top, right - left, bottom - top]

    common = dict(image_id=1, category_id=1)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dict(
            images=[dict(id=1)],
            categories=[dict(id=1)],
            annotations=[
                dict(common, id=index + 1, bbox=pixels(box), area=400, iscrowd=0)
                for index, box in enumerate((FIRST, OTHER))
            ],
        )
        truth.createIndex()
        found = truth.loadRes(
            [
                dict(common, bbox=pixels(box), score=float(score))
                for box, score in zip(boxes, scores)
            ]
        )
        evaluation = COCOeval(truth, found, 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(float(evaluation.stats[1]), 2)


boxes, scores = [FIRST, SECOND, OTHER], [0.9, 0.8, 0.7]
overlap = (0.18 * 0.2) / (0.22 * 0.2)
lowered = [0.9, 0.8 * math.exp(-(overlap**2) / 0.5), 0.7]
kept, given, _ = soft_nms([boxes], [scores], [[0, 0, 0]], method=2, sigma=0.5)
seen = {
    'scores': sorted((round(float(score), 2) for score in given), reverse=True),
    'AP50': precision(kept, given),
    'of the paper': [round(score, 2) for score in lowered],
    'AP50 of the paper': precision(boxes, lowered),
    'AP50 without': precision(boxes, scores),
}
print(f'ensemble-boxes {version("ensemble-boxes")}: {seen}')
assert seen == {
    'scores': [0.9, 0.8, 0.7],
    'AP50': 0.83,
    'of the paper': [0.9, 0.21, 0.7],
    'AP50 of the paper': 1.0,
    'AP50 without': 0.83,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore soft.py
