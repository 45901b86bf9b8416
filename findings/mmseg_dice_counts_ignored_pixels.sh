#!/usr/bin/env bash
# mmsegmentation 1.2.2: DiceLoss counts ignored pixels as background of every class, so with
# half of the pixels ignored, a prediction that is right at all others has a loss of 1/3.
#
# Its ignore_index only leaves out a class of that number, and 255, the default, is none. A
# pixel of 255 has no class in the target, and its prediction stays in the denominator: a loss
# that should be 0, and is 0 for the labeled pixels alone, is 1 - 2 / (2 + 1). With
# sigmoid, the default, each ignored pixel pushes the scores of all classes down: a third of
# the first gradient comes from pixels without a label. No warning. TverskyLoss of the same
# package, with alpha = beta = 0.5 a dice loss, leaves them out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 opencv-python-headless==5.0.0.93 \
    mmengine==0.10.7 prettytable==3.18.0 ftfy==6.3.1 regex==2026.11.19 scipy==1.17.1 \
    setuptools==80.10.2
"$folder/venv/bin/pip" install -q --no-deps mmcv-lite==2.1.0 mmsegmentation==1.2.2
cd "$folder"
cat > ignored.py <<'PYTHON'
import sys
import types

operators = types.ModuleType('mmcv._ext')
operators.__getattr__ = lambda name: name
sys.modules['mmcv._ext'] = operators

import mmseg
import torch
from mmseg.models.losses import DiceLoss, TverskyLoss

# The left half of an image has class 0, the right one class 1; every second row is ignored.
truth = torch.zeros(1, 8, 8, dtype=torch.long)
truth[..., 4:] = 1
labels = truth.clone()
labels[:, ::2] = 255
scores = torch.stack([truth == 0, truth == 1], 1) * 40.0 - 20


def gradient(loss):
    """Return which part of the gradient of equal scores ignored pixels have, and its signs."""
    inputs = torch.zeros(1, 2, 8, 8, requires_grad=True)
    loss(inputs, labels, ignore_index=255).backward()
    ignored = inputs.grad.permute(0, 2, 3, 1)[labels == 255]
    part = ignored.abs().sum() / inputs.grad.abs().sum()
    return round(part.item(), 2), ignored.sign().unique().tolist()


tversky = TverskyLoss(alpha=0.5, beta=0.5, ignore_index=255)
seen = {'TverskyLoss': round(tversky(scores, labels).item(), 3)}
for name in ('softmax', 'sigmoid'):
    loss = DiceLoss(use_sigmoid=name == 'sigmoid')
    seen[name] = dict(
        all_labeled=round(loss(scores, truth).item(), 3),
        half_ignored=round(loss(scores, labels, ignore_index=255).item(), 3),
        labeled_half=round(loss(scores[:, :, 1::2], labels[:, 1::2]).item(), 3),
    )
seen['gradient'] = gradient(DiceLoss())
print(f'mmseg {mmseg.__version__}: {seen}')
assert seen == {
    'TverskyLoss': 0.0,
    'softmax': dict(all_labeled=0.0, half_ignored=0.333, labeled_half=0.0),
    'sigmoid': dict(all_labeled=0.0, half_ignored=0.333, labeled_half=0.0),
    'gradient': (0.33, [1.0]),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore ignored.py | tail -n 1
