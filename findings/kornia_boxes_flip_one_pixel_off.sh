#!/usr/bin/env bash
# kornia 0.9.0: AugmentationSequential flips, turns and resizes boxes otherwise than images, so
# boxes are up to a pixel off, and Boxes.compute_area loses a row and a column.
#
# The right edge of a box is beyond its last pixel, but is moved as a pixel is. In an image
# 60 wide, a box from 10 to 25 becomes 34 to 49, and its pixels 35 to 50: an IoU of 0.88.
# Resized to twice the size the box is 20.2 to 50.4, and its pixels 20 to 50. Masks of the
# same call are right. A box of 15 x 25 pixels has an area of 336, which is 14 x 24, while
# get_boxes_shape and to_mask of the same object say 375.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q kornia==0.9.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > boxes.py <<'PYTHON'
import kornia
import torch
from kornia.augmentation import AugmentationSequential, RandomHorizontalFlip, Resize
from kornia.geometry.boxes import Boxes

LEFT, TOP, RIGHT, BOTTOM = BOX = [10.0, 5.0, 25.0, 30.0]


def edges(augmentation):
    """Return left and right edges of an object's pixels and of its box."""
    image = torch.zeros(1, 1, 40, 60)
    image[..., 5:30, 10:25] = 1
    augment = AugmentationSequential(augmentation, data_keys=['input', 'bbox_xyxy'])
    image, boxes = augment(image, torch.tensor([[BOX]]))
    columns = (image[0, 0] > 0.5).any(0).nonzero()
    pixels = [columns.min().item(), columns.max().item() + 1]
    return pixels, [round(boxes[0, 0, index].item(), 1) for index in (0, 2)]


boxes = Boxes.from_tensor(torch.tensor([[BOX]]), mode='xyxy')
heights, widths = boxes.get_boxes_shape()
seen = {
    'flip': edges(RandomHorizontalFlip(p=1.0)),
    'resize': edges(Resize((80, 120))),
    'area': boxes.compute_area().item(),
    'height times width': (heights * widths).item(),
    'pixels of the mask': boxes.to_mask(40, 60).sum().item(),
}
print(f'kornia {kornia.__version__}: {seen}')
assert seen == {
    'flip': ([35, 50], [34.0, 49.0]),
    'resize': ([20, 50], [20.2, 50.4]),
    'area': 336.0,
    'height times width': 375.0,
    'pixels of the mask': 375.0,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore boxes.py
