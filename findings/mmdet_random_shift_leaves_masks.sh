#!/usr/bin/env bash
# mmdet 3.3.0: RandomShift moves image and boxes and leaves masks and the semantic map where they
# were, without a word.
#
# It copies the image to another place and shifts the boxes; `gt_masks` and `gt_seg_map` pass
# through as they are. Their number still fits that of the boxes, so nothing notices.
# RandomAffine refuses masks. A square of 20 pixels is shifted by up to 16 pixels, 200 times: the
# mean IoU of the square in the image with its box is 1, with its mask 0.23, and with
# the map 0.23. A mask head learns from such masks, cut out by the right boxes. The same holds
# for masks of bitmaps and of polygons. Use RandomShift for boxes only, RandomCrop for masks.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 opencv-python-headless==5.0.0.93 \
    mmengine==0.10.7 pycocotools==2.0.11 scipy==1.17.1 shapely==2.2.0 six==1.17.0 \
    terminaltables==3.1.10 tqdm==4.70.1 setuptools==80.10.2
"$folder/venv/bin/pip" install -q --no-deps mmcv-lite==2.1.0 mmdet==3.3.0
cd "$folder"
cat > shift.py <<'PYTHON'
import random
import sys
import types

operators = types.ModuleType('mmcv._ext')
operators.__getattr__ = lambda name: name
sys.modules['mmcv._ext'] = operators

import mmdet
import numpy as np
from mmdet.datasets.transforms import RandomAffine, RandomShift
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks

SIZE = 80
OUTLINE = np.array([30, 30, 50, 30, 50, 50, 30, 50], np.float32)


def annotated(kind):
    """Return an image with a white square of 20 x 20 pixels, and its annotations."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[30:50, 30:50] = 255
    square = image[..., 0] // 255
    if kind is PolygonMasks:
        masks = PolygonMasks([[OUTLINE.copy()]], SIZE, SIZE)
    else:
        masks = BitmapMasks(square[None], SIZE, SIZE)
    return dict(
        img=image,
        img_shape=image.shape[:2],
        gt_bboxes=HorizontalBoxes([[30.0, 30.0, 50.0, 50.0]]),
        gt_bboxes_labels=np.array([0]),
        gt_ignore_flags=np.array([False]),
        gt_masks=masks,
        gt_seg_map=square.copy(),
    )


def overlaps(kind):
    """Return the mean IoU of the square in the image with box, mask and semantic map."""
    random.seed(0)
    np.random.seed(0)
    shift = RandomShift(prob=1.0, max_shift_px=16)
    scores = []
    for _ in range(200):
        results = shift(annotated(kind))
        square = results['img'][..., 0] > 127
        left, top, right, bottom = results['gt_bboxes'].tensor[0].int().tolist()
        box = np.zeros_like(square)
        box[top:bottom, left:right] = True
        others = box, results['gt_masks'].to_ndarray()[0] > 0, results['gt_seg_map'] > 0
        scores.append([(square & each).sum() / (square | each).sum() for each in others])
    return np.mean(scores, 0).round(2).tolist()


seen = {kind.__name__: overlaps(kind) for kind in (BitmapMasks, PolygonMasks)}
try:
    RandomAffine()(annotated(BitmapMasks))
except NotImplementedError as error:
    seen['RandomAffine'] = str(error)
print(f'mmdet {mmdet.__version__}: {seen}')
assert seen == {
    'BitmapMasks': [1.0, 0.23, 0.23],
    'PolygonMasks': [1.0, 0.23, 0.23],
    'RandomAffine': 'RandomAffine only supports bbox.',
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore shift.py
