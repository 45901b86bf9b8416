#!/usr/bin/env bash
# mmengine 0.10.7 with torch 2.13.0: PolyLR and LinearLR reach their last value one update
# before `end`, so with eta_min=0 the last update of a training does nothing.
#
# A PolyLR with end=4 has the rates of torch's PolynomialLR with total_iters=3. The usual
# config of a segmenter has `end` at the number of its iterations and eta_min=0: its last
# iteration computes a gradient and multiplies it by 0. A warm-up by LinearLR with end=4 is
# likewise over after three updates. CosineAnnealingLR divides by all of `end`, as torch's.
# Add 1 to `end` of these two for the schedule of torch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mmengine==0.10.7 torch==2.13.0 numpy==2.4.6 \
    opencv-python-headless==5.0.0.93 setuptools==80.10.2
cd "$folder"
cat > rates.py <<'PYTHON'
import mmengine
import torch
from mmengine.optim import scheduler as ours
from torch.optim import lr_scheduler as theirs


def rates(kind, **kwargs):
    """Return the learning rates of a training of four updates."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = kind(optimizer, **kwargs)
    seen = []
    for _ in range(4):
        seen.append(round(optimizer.param_groups[0]['lr'], 3))
        optimizer.step()
        scheduler.step()
    return seen


seen = {
    'poly': rates(ours.PolyLR, end=4, eta_min=0, by_epoch=False),
    'poly of torch': rates(theirs.PolynomialLR, total_iters=4),
    'linear': rates(ours.LinearLR, end=4, start_factor=0.2, by_epoch=False),
    'linear of torch': rates(theirs.LinearLR, total_iters=4, start_factor=0.2),
}
print(f'mmengine {mmengine.__version__}, torch {torch.__version__}: {seen}')
assert seen == {
    'poly': [1.0, 0.667, 0.333, 0.0],
    'poly of torch': [1.0, 0.75, 0.5, 0.25],
    'linear': [0.2, 0.467, 0.733, 1.0],
    'linear of torch': [0.2, 0.4, 0.6, 0.8],
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore rates.py
