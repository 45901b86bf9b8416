#!/usr/bin/env bash
# torchvision 0.28.0: masks_to_boxes gives boxes that lack the last row and column of their masks,
# while its own transforms, and COCO, have the right and lower edge beyond the last pixel.
#
# The function returns the index of the last pixel as edge. The documentation says x1 <= x2 and
# warns of single rows and columns, whose boxes are empty, not that every box is smaller. Boxes of
# this function, as tutorials of Mask R-CNN make them, are off against annotations of COCO, and
# against their own masks after transforms.v2: a flip leaves box and mask a pixel apart. Seen for
# a mask of columns 7 to 26 and rows 5 to 14 in an image 80 wide: 7, 5, 26, 14, with an IoU of
# 0.855 with the box of its 20 x 10 pixels; after a flip of both 54 to 73, and 53 to 72 by
# masks_to_boxes of the flipped mask. Exact masks of 10 x 10 pixels have a mAP of 0.7 by
# pycocotools as boxes of this function, and 1 with a pixel added.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 pillow==13.0.0 pycocotools==2.0.11
# Installed without CUDA's torch, which its operators need; nothing here uses them.
"$folder/venv/bin/pip" install -q --no-deps torchvision==0.28.0
cd "$folder"
cat > boxes.py <<'PYTHON'
import contextlib
import io

import torch

try:
    import torchvision
except RuntimeError:  # This torch has no CUDA: name the operators that the import looks for.
    operators = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        operators.define(f'{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor')
    import torchvision

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou, masks_to_boxes
from torchvision.transforms.v2.functional import horizontal_flip
from torchvision.tv_tensors import BoundingBoxes, Mask


def score(added):
    """Return the mAP of exact masks of 10 x 10 pixels by their boxes, made larger by `added`."""
    masks = torch.zeros(9, 100, 100, dtype=torch.bool)
    objects, results = [], []
    for index, mask in enumerate(masks):
        left, top = 5 + 30 * (index % 3), 5 + 30 * (index // 3)
        mask[top : top + 10, left : left + 10] = True
        objects.append(
            dict(
                id=index + 1,
                image_id=1,
                category_id=1,
                bbox=[left, top, 10, 10],
                area=100,
                iscrowd=0,
            )
        )
    for x1, y1, x2, y2 in masks_to_boxes(masks).tolist():
        box = [x1, y1, x2 - x1 + added, y2 - y1 + added]
        results.append(dict(image_id=1, category_id=1, bbox=box, score=0.9))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dict(
            images=[dict(id=1, width=100, height=100)],
            categories=[dict(id=1, name='thing')],
            annotations=objects,
        )
        coco.createIndex()
        coco.dataset['info'] = {}
        evaluation = COCOeval(coco, coco.loadRes(results), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(float(evaluation.stats[0]), 2)


mask = torch.zeros(1, 60, 80, dtype=torch.uint8)
mask[:, 5:15, 7:27] = 1
box = masks_to_boxes(mask)
right = torch.tensor([[7.0, 5.0, 27.0, 15.0]])
flipped = horizontal_flip(BoundingBoxes(box, format='XYXY', canvas_size=(60, 80)))
of_flipped = masks_to_boxes(horizontal_flip(Mask(mask)))
seen = {
    'box': box[0].tolist(),
    'IoU': round(box_iou(box, right).item(), 3),
    'box that is flipped': [flipped[0, 0].item(), flipped[0, 2].item()],
    'box of the flipped mask': [of_flipped[0, 0].item(), of_flipped[0, 2].item()],
    'mAP': score(0),
    'mAP with a pixel added': score(1),
}
print(f'torchvision {torchvision.__version__}, torch {torch.__version__}: {seen}')
assert seen == {
    'box': [7.0, 5.0, 26.0, 14.0],
    'IoU': 0.855,
    'box that is flipped': [54.0, 73.0],
    'box of the flipped mask': [53.0, 72.0],
    'mAP': 0.7,
    'mAP with a pixel added': 1.0,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore boxes.py
