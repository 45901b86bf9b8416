#!/usr/bin/env bash
# mmdet 3.3.0 with OpenCV 5.0.0: Rotate turns masks of polygons about the upper left corner of
# the image, while image, box and masks of bitmaps turn about its center.
#
# PolygonMasks.rotate passes its center, which Rotate leaves at None, to OpenCV, which takes
# None for (0, 0). BitmapMasks.rotate takes the center of the image. A square of 20 pixels
# in an image of 60 x 60 is turned by 10 degrees: the bitmap has an IoU of 100% with where the
# square is then, the polygon of 37%; by 30 degrees 100% and 1%. No error and no warning. The
# masks are those of LoadAnnotations(with_mask=True, poly2mask=False). Reported in 2024 as
# issue 11758 of mmdetection; no release is without it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 opencv-python-headless==5.0.0.93 \
    mmengine==0.10.7 pycocotools==2.0.11 scipy==1.17.1 shapely==2.2.0 six==1.17.0 terminaltables==3.1.10 \
    tqdm==4.70.1 setuptools==80.10.2
"$folder/venv/bin/pip" install -q --no-deps mmcv-lite==2.1.0 mmdet==3.3.0
cd "$folder"
cat > turn.py <<'PYTHON'
import sys
import types

# mmdet asks for compiled operators when it is imported. Nothing here uses them.
operators = types.ModuleType('mmcv._ext')
operators.__getattr__ = lambda name: name
sys.modules['mmcv._ext'] = operators

import cv2
import mmdet
import numpy as np
from mmdet.datasets.transforms import Rotate
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks

SIZE = 60
SQUARE = np.array([10, 20, 30, 20, 30, 40, 10, 40], np.float32)


def overlap(kind, degrees):
    """Return the IoU in percent of the square in the image and its mask, both turned."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[20:40, 10:30] = 255
    if kind is PolygonMasks:
        masks = PolygonMasks([[SQUARE.copy()]], SIZE, SIZE)
    else:
        masks = BitmapMasks(image[None, ..., 0] // 255, SIZE, SIZE)
    # A range of one value makes the angle certain.
    rotate = Rotate(
        prob=1.0,
        min_mag=float(degrees),
        max_mag=float(degrees),
        reversal_prob=0.0,
        img_border_value=0,
    )
    results = rotate(
        dict(
            img=image,
            img_shape=image.shape[:2],
            gt_bboxes=HorizontalBoxes([[10.0, 20.0, 30.0, 40.0]]),
            gt_bboxes_labels=np.array([0]),
            gt_ignore_flags=np.array([False]),
            gt_masks=masks,
        )
    )
    square = results['img'][..., 0] > 127
    mask = results['gt_masks'].to_ndarray()[0] > 0
    return round(100 * (square & mask).sum() / (square | mask).sum())


seen = {
    degrees: (overlap(BitmapMasks, degrees), overlap(PolygonMasks, degrees))
    for degrees in (10, 30)
}
print(f'mmdet {mmdet.__version__}, OpenCV {cv2.__version__}: {seen}')
assert seen == {10: (100, 37), 30: (100, 1)}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore turn.py
