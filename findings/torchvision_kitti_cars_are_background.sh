#!/usr/bin/env bash
# torchvision 0.28.0: wrap_dataset_for_transforms_v2 gives cars of KITTI the label 0, which its own
# detectors take for the background, and counts DontCare as one more class.
#
# Labels of the wrapped dataset count from Car, which is 0, to DontCare, which is 8. Faster R-CNN,
# Mask R-CNN and SSD keep 0 for the background, and the wrapper of Pascal VOC counts from 1. With
# a Car, a Pedestrian and a DontCare, proposals that are exactly these boxes are to learn the
# classes 0, 3 and 8, and only the last two have a box loss: cars, most objects of the set, are
# learned as background. A DontCare is a region without labels of its objects, which the
# evaluation of KITTI leaves out, and is learned as a class. No warning. Drop boxes with a label
# of 8, and add 1 to labels for detectors that keep 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 pillow==13.0.0
# Installed without CUDA's torch, which its operators need; nothing here uses them.
"$folder/venv/bin/pip" install -q --no-deps torchvision==0.28.0
cd "$folder"
cat > cars.py <<'PYTHON'
from pathlib import Path

import torch

try:
    import torchvision
except RuntimeError:  # This torch has no CUDA: name the operators that the import looks for.
    operators = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        operators.define(f'{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor')
    import torchvision

from PIL import Image
from torchvision.datasets import Kitti, wrap_dataset_for_transforms_v2
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.tv_tensors import _dataset_wrapper

# An image of KITTI with its annotations, one object a line.
for part in ('image_2', 'label_2'):
    Path('Kitti/raw/training', part).mkdir(parents=True)
Image.new('RGB', (200, 100)).save('Kitti/raw/training/image_2/000000.png')
objects = dict(Car=10, Pedestrian=60, DontCare=120)
Path('Kitti/raw/training/label_2/000000.txt').write_text(
    ''.join(
        f'{kind} 0.00 0 -1.57 {left}.00 10.00 {left + 30}.00 40.00 '
        '1.50 1.60 3.90 1.00 1.70 20.00 -1.57\n'
        for kind, left in objects.items()
    )
)
_, target = wrap_dataset_for_transforms_v2(Kitti('.'))[0]

# The labels that the head of Faster R-CNN learns for proposals that are the objects.
head = RoIHeads(None, None, None, 0.5, 0.5, 4, 0.5, None, 0.05, 0.5, 100)
boxes = [target['boxes'].as_subclass(torch.Tensor)]
_, (learned,) = head.assign_targets_to_proposals(boxes, boxes, [target['labels']])


def box_loss(number):
    """Return whether an object has a box loss where the predicted box is wrong."""
    label = learned[number : number + 1]
    _, loss = fastrcnn_loss(torch.zeros(1, 9), torch.ones(1, 36), [label], [torch.zeros(1, 4)])
    return loss.item() > 0


seen = {
    'labels': dict(zip(objects, target['labels'].tolist())),
    'box loss': [box_loss(number) for number in range(3)],
    'first of VOC': _dataset_wrapper.VOC_DETECTION_CATEGORIES[0],
}
print(f'torchvision {torchvision.__version__}: {seen}')
assert seen == {
    'labels': dict(Car=0, Pedestrian=3, DontCare=8),
    'box loss': [False, True, True],
    'first of VOC': '__background__',
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore cars.py
