#!/usr/bin/env bash
# mmsegmentation 1.2.2: DiceLoss puts the pixels of all classes into one sum, so a class of 1% of
# the pixels that is missed costs 0.01, and the loss does nothing for rare classes.
#
# A Dice coefficient compares the pixels of one class with those of its prediction. The mean over
# classes gives a rare class the weight of any other, which is what the loss is taken for, and
# MMSegmentation 0.x has it so. 1.2.2 flattens classes and pixels of an image together: the
# sum is that of all pixels, and the loss of sure scores is the part of them that is wrong. Of
# two classes, one with 100 of 10,000 pixels, the coefficients are 0.995 and 0 if that is
# missed, and 0.997 and 0.667 if half of it is found: mean losses of 0.503 and 0.168. Seen: 0.01
# and 0.005, with softmax, sigmoid and naive_dice. Configs of DRIVE, STARE and others have it for
# thin vessels. No warning. TverskyLoss(alpha=0.5, beta=0.5) has the mean over classes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 opencv-python-headless==5.0.0.93 \
    mmengine==0.10.7 prettytable==3.18.0 ftfy==6.3.1 regex==2026.11.19 scipy==1.17.1 \
    setuptools==80.10.2
"$folder/venv/bin/pip" install -q --no-deps mmcv-lite==2.1.0 mmsegmentation==1.2.2
cd "$folder"
cat > rare.py <<'PYTHON'
import sys
import types

operators = types.ModuleType('mmcv._ext')
operators.__getattr__ = lambda name: name
sys.modules['mmcv._ext'] = operators

import mmseg
import torch
from mmseg.models.losses import DiceLoss, TverskyLoss

truth = torch.zeros(1, 100, 100, dtype=torch.long)
truth[:, :10, :10] = 1
missed = torch.zeros_like(truth)
half = missed.clone()
half[:, :5, :10] = 1


def of_sets(prediction):
    """Return the mean over both classes of 1 - Dice coefficient, counted in pixels."""
    losses = []
    for number in (0, 1):
        found, true = prediction == number, truth == number
        both = (found & true).sum().item()
        losses.append(1 - 2 * both / (found.sum().item() + true.sum().item()))
    return round(sum(losses) / 2, 3)


def of_mmseg(loss, prediction):
    """Return the loss of scores that are sure of the prediction."""
    scores = torch.stack([prediction == 0, prediction == 1], 1) * 40.0 - 20
    return round(loss(scores, truth).item(), 3)


kinds = {
    'softmax': DiceLoss(use_sigmoid=False),
    'sigmoid': DiceLoss(),
    'naive': DiceLoss(use_sigmoid=False, naive_dice=True),
    'TverskyLoss': TverskyLoss(alpha=0.5, beta=0.5, smooth=0),
}
seen = {'right': [of_sets(each) for each in (missed, half, truth)]}
for name, loss in kinds.items():
    seen[name] = [of_mmseg(loss, each) for each in (missed, half, truth)]
print(f'mmseg {mmseg.__version__}: {seen}')
assert seen == {
    'right': [0.503, 0.168, 0.0],
    'softmax': [0.01, 0.005, 0.0],
    'sigmoid': [0.01, 0.005, 0.0],
    'naive': [0.01, 0.005, 0.0],
    'TverskyLoss': [0.503, 0.168, 0.0],
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore rare.py | tail -n 1
