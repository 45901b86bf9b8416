#!/usr/bin/env bash
# torchmetrics 1.9.0: MeanAveragePrecision has thresholds of float32, so a box with an IoU of
# exactly 0.55, 0.6, 0.8 or 0.85 counts as missed, where pycocotools counts it as found.
#
# torch.linspace gives 0.6000000238 for 0.6, which is handed to pycocotools, whose IoU is
# float64. Boxes of whole pixels often meet such a threshold: a box of 10 x 6 pixels in one
# of 10 x 10 has an mAP of 0.2 by torchmetrics and 0.3 by pycocotools. For 1000 boxes of up
# to 20 pixels, each edge up to a pixel off, it is 0.4579 and 0.4605. The same holds for the
# recalls at which precisions are read. numpy.linspace(0.5, 0.95, 10).tolist() and
# numpy.linspace(0, 1, 101).tolist() as iou_thresholds and rec_thresholds give COCO's numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6 \
    pycocotools==2.0.11 pillow==13.0.0
# Installed without CUDA's torch, which its operators need; boxes are converted in Python.
"$folder/venv/bin/pip" install -q --no-deps torchvision==0.28.0
cd "$folder"
cat > thresholds.py <<'PYTHON'
import contextlib
import io

import numpy as np
import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # This torch has no CUDA: name the operators that the import looks for.
    operators = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        operators.define(f'{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor')

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics import __version__
from torchmetrics.detection import MeanAveragePrecision


def of_torchmetrics(truth, found, **kwargs):
    """Return the mAP of boxes, one in each image."""
    metric = MeanAveragePrecision(box_format='xywh', **kwargs)
    label = torch.zeros(1, dtype=torch.long)
    for index, (box, other) in enumerate(zip(truth, found)):
        score = torch.tensor([1 - index / 2000], dtype=torch.float64)
        metric.update(
            [dict(boxes=torch.tensor([other], dtype=torch.float64), scores=score, labels=label)],
            [dict(boxes=torch.tensor([box], dtype=torch.float64), labels=label)],
        )
    return round(metric.compute()['map'].item(), 4)


def of_pycocotools(truth, found):
    """Return the mAP of the same boxes."""
    coco = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        coco.dataset = dict(
            images=[dict(id=index) for index in range(len(truth))],
            categories=[dict(id=0)],
            annotations=[
                dict(id=n + 1, image_id=n, category_id=0, bbox=box, area=box[2] * box[3], iscrowd=0)
                for n, box in enumerate(truth)
            ],
        )
        coco.createIndex()
        results = [
            dict(image_id=n, category_id=0, bbox=box, score=1 - n / 2000)
            for n, box in enumerate(found)
        ]
        evaluation = COCOeval(coco, coco.loadRes(results), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(float(evaluation.stats[0]), 4)


random = np.random.default_rng(0)
sides = random.integers(5, 21, (1000, 2))
truth = np.hstack([random.integers(10, 50, (1000, 2)), sides])
found = truth + random.integers(-1, 2, truth.shape)
truth, found = truth.tolist(), found.tolist()
one = [[0, 0, 10, 10]], [[0, 0, 10, 6]]
exact = dict(
    iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
    rec_thresholds=np.linspace(0, 1, 101).tolist(),
)
seen = {
    'one box': (of_torchmetrics(*one), of_pycocotools(*one)),
    '1000 boxes': (of_torchmetrics(truth, found), of_pycocotools(truth, found)),
    'thresholds of float64': of_torchmetrics(truth, found, **exact),
}
print(f'torchmetrics {__version__}: {seen}')
assert seen == {
    'one box': (0.2, 0.3),
    '1000 boxes': (0.4579, 0.4605),
    'thresholds of float64': 0.4605,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore thresholds.py | tail -n 1
