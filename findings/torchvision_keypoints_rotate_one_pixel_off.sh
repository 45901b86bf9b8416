#!/usr/bin/env bash
# torchvision 0.28.0: rotate, affine and resize move KeyPoints otherwise than flips do, so a
# point that is right after a flip is up to a pixel off after a rotation.
#
# Flips take a point for the index of a pixel: in an image 40 wide, 0 becomes 39. Rotations take
# it for an edge: 0 becomes 40, which is outside of the image. An image of 20 x 40 pixels with a
# bright pixel in column 3 and row 5 is flipped both ways, and turned by 180 degrees, which is
# the same: the pixel is in column 36 and row 14 both times. The point is there after the
# flips, and at 37 and 15 after the rotation. By 90 degrees one coordinate is off. At twice the
# size the pixel is columns 6 and 7, with the middle at 6.5, and the point is at 6.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 pillow==13.0.0
# Installed without CUDA's torch, which its operators need; transforms use none of them.
"$folder/venv/bin/pip" install -q --no-deps torchvision==0.28.0
cd "$folder"
cat > points.py <<'PYTHON'
import torch

try:
    import torchvision
except RuntimeError:  # This torch has no CUDA: name the operators that the import looks for.
    operators = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        operators.define(f'{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor')
    import torchvision

from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import Image, KeyPoints


def places(transform):
    """Return the middle of the bright pixels and the point, as column and row."""
    pixels = torch.zeros(1, 20, 40)
    pixels[0, 5, 3] = 1
    rows, columns = transform(Image(pixels))[0].nonzero().float().unbind(1)
    (point,) = transform(KeyPoints(torch.tensor([[3.0, 5.0]]), canvas_size=(20, 40))).tolist()
    return [columns.mean().item(), rows.mean().item()], [round(each, 1) for each in point]


seen = {
    'flips': places(
        lambda each: functional.vertical_flip(functional.horizontal_flip(each)),
    ),
    'rotate by 180': places(lambda each: functional.rotate(each, 180)),
    'rotate by 90': places(lambda each: functional.rotate(each, 90, expand=True)),
    'resize': places(lambda each: functional.resize(each, [40, 80], interpolation=0)),
}
print(f'torchvision {torchvision.__version__}: {seen}')
assert seen == {
    'flips': ([36.0, 14.0], [36.0, 14.0]),
    'rotate by 180': ([36.0, 14.0], [37.0, 15.0]),
    'rotate by 90': ([5.0, 36.0], [5.0, 37.0]),
    'resize': ([6.5, 10.5], [6.0, 10.0]),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore points.py
