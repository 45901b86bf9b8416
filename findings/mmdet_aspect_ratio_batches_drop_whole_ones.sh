#!/usr/bin/env bash
# mmdet 3.3.0: AspectRatioBatchSampler with drop_last=True also drops a whole batch, by chance,
# so ranks of one training make different numbers of iterations.
#
# It makes batches of wide images and of tall ones, and batches of the rest of both. The
# last of these is dropped even if it is whole. Of four images in batches of two, three wide
# and one tall ones make one batch, while len() is 2; four wide ones make two. Two ranks with
# these images part after one iteration, and the second waits for the first. With random
# images and batches of 8, 89% of 200 epochs are shorter than len() says. drop_last=False,
# the default, makes as many batches as it says.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 opencv-python-headless==5.0.0.93 \
    mmengine==0.10.7 pycocotools==2.0.11 scipy==1.17.1 shapely==2.2.0 six==1.17.0 terminaltables==3.1.10 \
    tqdm==4.70.1 setuptools==80.10.2
"$folder/venv/bin/pip" install -q --no-deps mmcv-lite==2.1.0 mmdet==3.3.0
cd "$folder"
cat > batches.py <<'PYTHON'
import sys
import types

# mmdet asks for compiled operators when it is imported. Nothing here uses them.
operators = types.ModuleType('mmcv._ext')
operators.__getattr__ = lambda name: name
sys.modules['mmcv._ext'] = operators

import mmdet
import numpy as np
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler

WIDE, TALL = dict(width=4, height=3), dict(width=3, height=4)


class Images(list):
    def get_data_info(self, index):
        return self[index]


def batches(images, size, drop_last):
    """Return how many batches there are and how many len() promises."""
    sampler = DefaultSampler(Images(images), shuffle=False)
    sampler = AspectRatioBatchSampler(sampler, size, drop_last=drop_last)
    return len(list(sampler)), len(sampler)


def shorter(drop_last):
    """Return the share of random epochs of 64 images that are shorter than promised."""
    short = 0
    for seed in range(200):
        wide = np.random.default_rng(seed).random(64) < 0.7
        made, promised = batches([WIDE if each else TALL for each in wide], 8, drop_last)
        short += made < promised
    return short / 200


seen = {
    'first rank': batches([WIDE, WIDE, WIDE, TALL], 2, True),
    'second rank': batches([WIDE, WIDE, WIDE, WIDE], 2, True),
    'random, drop_last=True': shorter(True),
    'random, drop_last=False': shorter(False),
}
print(f'mmdet {mmdet.__version__}: {seen}')
assert seen == {
    'first rank': (1, 2),
    'second rank': (2, 2),
    'random, drop_last=True': 0.895,
    'random, drop_last=False': 0.0,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore batches.py
