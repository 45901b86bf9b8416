#!/usr/bin/env bash
# pillow 13.0.0, imageio 2.38.1, scikit-image 0.26.0: PNG files with three channels of 16 bits
# are read with 8, without a word, so optical flow of KITTI is lost.
#
# KITTI stores flow as 64 * flow + 32768 in red and green, and a mark of valid pixels, 1 or 0,
# in blue. Pillow keeps the upper byte of each number: the format reads as uint8, a step is
# then 4 pixels of flow, and no pixel is valid, since 1 is in the lower byte. A decoder that
# multiplies by 256 to make up for it has a mean error of two pixels. imageio and
# scikit-image read PNG files with Pillow. Gray files of 16 bits, such as depth and disparity,
# are read right. OpenCV with IMREAD_UNCHANGED reads both right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow==13.0.0 imageio==2.38.1 scikit-image==0.26.0 \
    numpy==2.4.6 opencv-python-headless==5.0.0.93
cd "$folder"
cat > flow.py <<'PYTHON'
import cv2
import imageio.v3
import numpy as np
import PIL
import skimage.io
from PIL import Image

generator = np.random.default_rng(0)
flow = generator.uniform(-30, 30, (64, 64, 2))
stored = np.dstack([np.round(64 * flow + 32768), np.ones((64, 64))]).astype(np.uint16)
cv2.imwrite('flow.png', stored[..., ::-1])
cv2.imwrite('depth.png', stored[..., 0])


def summary(colors, depth):
    """Return the type, how many pixels are valid, the mean error and if depth is right."""
    scale = 256 if colors.dtype == np.uint8 else 1
    read = (scale * colors[..., :2].astype(float) - 32768) / 64
    valid = int((colors[..., 2] > 0).sum())
    error = round(float(np.abs(read - flow).mean()), 1)
    return str(colors.dtype), valid, error, bool((depth == stored[..., 0]).all())


seen = {
    'opencv': summary(
        cv2.imread('flow.png', cv2.IMREAD_UNCHANGED)[..., ::-1],
        cv2.imread('depth.png', cv2.IMREAD_UNCHANGED),
    ),
    'pillow': summary(np.array(Image.open('flow.png')), np.array(Image.open('depth.png'))),
    'imageio': summary(imageio.v3.imread('flow.png'), imageio.v3.imread('depth.png')),
    'skimage': summary(skimage.io.imread('flow.png'), skimage.io.imread('depth.png')),
}
print(f'pillow {PIL.__version__}: {seen}')
wrong = ('uint8', 0, 2.0, True)
assert seen == {
    'opencv': ('uint16', 4096, 0.0, True),
    'pillow': wrong,
    'imageio': wrong,
    'skimage': wrong,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore flow.py
