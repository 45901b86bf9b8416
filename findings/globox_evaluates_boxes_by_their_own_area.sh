#!/usr/bin/env bash
# globox 2.9.0: COCOEvaluator reads neither `area` nor `iscrowd` of COCO annotations, so its
# precisions by size, and those of a set with crowds, are not COCO's.
#
# COCO's sizes are areas of masks, which `area` of an annotation has; globox takes those of
# boxes. Four thin objects, whose masks of 800 pixels have boxes of 40 x 40, are small for COCO
# and medium for globox: of a detector that finds them and misses four objects of medium size,
# pycocotools has precisions of 1 and 0, globox of nan (none) and 0.5. A crowd counts as an
# object: a detector that finds all of four objects and nothing in four crowds has 1 by
# pycocotools, and 0.5 by globox. The total is equal where there are no crowds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q globox==2.9.0 numpy==2.4.6 pycocotools==2.0.11
cd "$folder"
cat > sizes.py <<'PYTHON'
import contextlib
import io
import json
import math
from importlib.metadata import version
from pathlib import Path

from globox import AnnotationSet, COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def precisions(areas, crowds):
    """Return precisions of all, small and medium objects by both, if four of eight are found."""
    common = dict(image_id=1, category_id=1)
    boxes = [[50 * index, 10, 40, 40] for index in range(8)]
    annotations = [
        dict(common, id=index + 1, bbox=box, area=area, iscrowd=crowd)
        for index, (box, area, crowd) in enumerate(zip(boxes, areas, crowds))
    ]
    image = dict(id=1, file_name='1.png', height=100, width=400)
    category = dict(id=1, name='object')
    truth = dict(images=[image], categories=[category], annotations=annotations)
    Path('truth.json').write_text(json.dumps(truth))
    found = [dict(common, bbox=box, score=0.9) for box in boxes[:4]]
    Path('found.json').write_text(json.dumps(found))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO('truth.json')
        theirs = COCOeval(coco, coco.loadRes('found.json'), 'bbox')
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    truth = AnnotationSet.from_coco(Path('truth.json'))
    globox = COCOEvaluator(
        ground_truths=truth, predictions=truth.from_results(Path('found.json'))
    )
    scores = [globox.ap(), globox.ap_small(), globox.ap_medium()]
    return {
        'pycocotools': [round(float(theirs.stats[index]), 2) for index in (0, 3, 4)],
        'globox': [None if math.isnan(score) else round(float(score), 2) for score in scores],
    }


seen = {
    'thin': precisions([800] * 4 + [1600] * 4, [0] * 8),
    'crowds': precisions([1600] * 8, [0] * 4 + [1] * 4),
}
print(f'globox {version("globox")}: {seen}')
assert seen == {
    'thin': {'pycocotools': [0.5, 1.0, 0.0], 'globox': [0.5, None, 0.5]},
    'crowds': {'pycocotools': [1.0, -1.0, 1.0], 'globox': [0.5, None, 0.5]},
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore sizes.py
