#!/usr/bin/env bash
# warmup-scheduler 0.3 with torch 2.13.0: GradualWarmupScheduler with CosineAnnealingLR has a
# learning rate above the one that is asked for, and ends its cosine an epoch late.
#
# After the warm-up it asks the cosine for the rate of its epoch 0. CosineAnnealingLR computes each
# rate from the last, so it multiplies the full rate by 2 / (1 + cos(pi / 8)), and all others
# follow from that. With lr=0.8, four epochs of warm-up and a cosine over eight, rates from epoch
# 4 on should be 0.8, 0.77, 0.683, 0.553, 0.4, 0.247, 0.117, 0.03, 0. Seen: 0.8, 0.832, 0.8, 0.71,
# 0.575, 0.416, 0.257, 0.122, 0.032, 0: 4% more than the formula one epoch earlier. It is 17%
# with a cosine over four epochs. No warning. SequentialLR of torch has the formula.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q warmup-scheduler==0.3 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > cosine.py <<'PYTHON'
from importlib.metadata import version

import numpy as np
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from warmup_scheduler import GradualWarmupScheduler

RATE, WARM_UP = 0.8, 4


def gradual(optimizer, length):
    """Return the scheduler of the package."""
    return GradualWarmupScheduler(optimizer, 1, WARM_UP, CosineAnnealingLR(optimizer, length))


def sequential(optimizer, length):
    """Return the same of torch, whose warm-up cannot begin at 0."""
    parts = [LinearLR(optimizer, 1e-9, 1, WARM_UP), CosineAnnealingLR(optimizer, length)]
    return SequentialLR(optimizer, parts, [WARM_UP])


def rates(build, length):
    """Return the rates from the end of the warm-up to the end of the cosine."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=RATE)
    scheduler = build(optimizer, length)
    found = []
    for _ in range(WARM_UP + length + 1 + (build is gradual)):
        found.append(abs(round(optimizer.param_groups[0]['lr'], 3)))
        optimizer.step()
        scheduler.step()
    return found[WARM_UP:]


def formula(length, factor=1.0):
    """Return the rates of a cosine."""
    cosine = (1 + np.cos(np.pi * np.arange(length + 1) / length)) / 2
    return [round(float(each), 3) for each in RATE * factor * cosine]


def excess(length):
    """Return what the first step of the cosine is multiplied by."""
    return 2 / (1 + np.cos(np.pi / length))


seen = {length: (rates(gradual, length), rates(sequential, length)) for length in (8, 4)}
print(f'warmup-scheduler {version("warmup-scheduler")}, torch {torch.__version__}: {seen}')
assert seen == {
    length: ([RATE] + formula(length, excess(length)), formula(length)) for length in (8, 4)
}, 'the behavior has changed'
assert seen[8][0][:4] == [0.8, 0.832, 0.8, 0.71]
PYTHON
venv/bin/python -W ignore cosine.py
