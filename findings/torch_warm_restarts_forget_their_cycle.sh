#!/usr/bin/env bash
# torch 2.13.0: CosineAnnealingWarmRestarts(T_mult=2, last_epoch=N) goes on in a first cycle,
# wherever epoch N is, so a resumed training has restarts at other epochs.
#
# With T_0=3 and T_mult=2 cycles begin at epochs 0, 3, 9 and 21. A scheduler made with last_epoch
# counts cycles of T_0 epochs up to there, and doubles from then on. Epochs 7 to 11 of a training
# from 0.8 have rates of 0.2, 0.05, 0.8, 0.79 and 0.75 by the formula of the paper, and the same in
# one go. Seen with last_epoch=6, the rate and initial_lr of epoch 6 in the optimizer: 0.75, 0.6,
# 0.4, 0.2, 0.05. No warning. step(7) knows the formula and gives the right rate,
# as does load_state_dict of a scheduler. T_mult=1 and other schedulers go on right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > restarts.py <<'PYTHON'
import numpy as np
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

BASE = 0.8


def formula(epoch, factor):
    """Return the rate of an epoch by equation 5 of Loshchilov and Hutter (2017)."""
    length = 3
    while epoch >= length:
        epoch, length = epoch - length, length * factor
    return BASE * (1 + np.cos(np.pi * epoch / length)) / 2


def rates(factor, start=0, load=False, jump=False):
    """Return the rates of epochs 7 to 11, resumed after epoch `start`."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=BASE)
    scheduler = CosineAnnealingWarmRestarts(optimizer, 3, factor)
    for _ in range(start):
        optimizer.step()
        scheduler.step()
    if start:
        saved, state = optimizer.state_dict(), scheduler.state_dict()
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=BASE)
        optimizer.load_state_dict(saved)
        if load:
            scheduler = CosineAnnealingWarmRestarts(optimizer, 3, factor)
            scheduler.load_state_dict(state)
        else:
            # The constructor makes the step to the next epoch, 7.
            optimizer.step()
            scheduler = CosineAnnealingWarmRestarts(optimizer, 3, factor, last_epoch=start)
            if jump:
                scheduler.step(start + 1)
    found = []
    for epoch in range(scheduler.last_epoch, 12):
        if epoch >= 7:
            found.append(round(optimizer.param_groups[0]['lr'], 2))
        optimizer.step()
        scheduler.step()
    return found


right = {
    factor: [round(float(formula(epoch, factor)), 2) for epoch in range(7, 12)]
    for factor in (1, 2)
}
seen = {
    'in one go': rates(2),
    'last_epoch=6': rates(2, 6),
    'and step(7)': rates(2, 6, jump=True),
    'load_state_dict': rates(2, 6, load=True),
    'T_mult=1': rates(1, 6),
}
print(f'torch {torch.__version__}: {seen}')
assert seen == {
    'in one go': right[2],
    'last_epoch=6': [0.75, 0.6, 0.4, 0.2, 0.05],
    'and step(7)': right[2],
    'load_state_dict': right[2],
    'T_mult=1': right[1],
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore restarts.py
