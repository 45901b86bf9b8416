#!/usr/bin/env bash
# torchmetrics 1.9.0: detection.IntersectionOverUnion averages over all pairs of a found box and
# a true one with the same label, so N objects of a class that are found exactly have 1 / N.
#
# Boxes are not matched to objects: the mean is that of the whole matrix of IoUs, with zeros
# for different objects. Three exact boxes of one class, far from each other, have 0.33, and
# those of three classes 1; the more objects an image has, the lower it is. Their generalized
# IoU is -0.14. The mean IoU of each object with its own box is 1. iou_threshold=0.5 drops
# the zeros, and with them all objects that are missed: two exact boxes of one class and one
# that is 40 pixels off have 1, where objects have 0.67. Match boxes first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6 pillow==13.0.0
# Installed without CUDA's torch, which its operators need; these metrics use none of them.
"$folder/venv/bin/pip" install -q --no-deps torchvision==0.28.0
cd "$folder"
cat > pairs.py <<'PYTHON'
import torch

try:
    import torchvision
except RuntimeError:  # This torch has no CUDA: name the operators that the import looks for.
    operators = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        operators.define(f'{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor')
    import torchvision

import torchmetrics
from torchmetrics.detection import GeneralizedIntersectionOverUnion, IntersectionOverUnion

BOXES = torch.tensor([[0.0, 0, 10, 10], [50, 0, 60, 10], [100, 0, 110, 10]])


def score(found, labels, metric=None):
    """Return the value of a metric for boxes in the order of the objects."""
    labels = torch.tensor(labels)
    found = [dict(boxes=found, labels=labels, scores=torch.ones(len(labels)))]
    [value] = (metric or IntersectionOverUnion())(
        found, [dict(boxes=BOXES, labels=labels)]
    ).values()
    return round(value.item(), 2)


def own(found):
    """Return the mean IoU of each object with the box that was found for it."""
    low, high = torch.max(BOXES, found), torch.min(BOXES, found)
    inner = (high[:, 2:] - low[:, :2]).clamp(min=0).prod(1)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (BOXES, found)]
    return round((inner / (sum(areas) - inner)).mean().item(), 2)


missed = BOXES + torch.tensor([[0.0] * 4, [0.0] * 4, [40.0, 0, 40, 0]])
seen = {
    'one class': score(BOXES, [1, 1, 1]),
    'three classes': score(BOXES, [1, 2, 3]),
    'generalized': score(BOXES, [1, 1, 1], GeneralizedIntersectionOverUnion()),
    'objects': own(BOXES),
    'one missed, with a threshold': score(
        missed, [1, 1, 1], IntersectionOverUnion(iou_threshold=0.5)
    ),
    'one missed, objects': own(missed),
}
print(f'torchmetrics {torchmetrics.__version__}: {seen}')
assert seen == {
    'one class': 0.33,
    'three classes': 1.0,
    'generalized': -0.14,
    'objects': 1.0,
    'one missed, with a threshold': 1.0,
    'one missed, objects': 0.67,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore pairs.py
