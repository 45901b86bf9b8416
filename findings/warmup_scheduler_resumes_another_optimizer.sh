#!/usr/bin/env bash
# warmup-scheduler 0.3 with torch 2.13.0: a training that is resumed with GradualWarmupScheduler
# keeps its learning rate for ever.
#
# state_dict() has the scheduler for the time after the warm-up as an object, with the optimizer
# of the first run inside. load_state_dict puts that object in place of the new one, so it
# goes on with a rate of the old optimizer, which nothing uses any more. Two epochs of warm-up and
# ExponentialLR with 0.5 have rates of 0, 0.4, 0.8, 0.4, 0.2, 0.1. Seen if the run is resumed
# after four epochs, from files with the states of optimizer and scheduler: 0, 0.4, 0.8, 0.4, and
# 0.2, 0.2, 0.2. Right is what the run in one go has. No warning. Set
# scheduler.after_scheduler.optimizer to the new optimizer after loading.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q warmup-scheduler==0.3 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > resume.py <<'PYTHON'
from importlib.metadata import version

import torch
from torch.optim.lr_scheduler import ExponentialLR
from warmup_scheduler import GradualWarmupScheduler

EPOCHS, WARM_UP, RATE, GAMMA = 8, 2, 0.8, 0.5


def build():
    """Return an optimizer and its scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=RATE)
    after = ExponentialLR(optimizer, GAMMA)
    return optimizer, GradualWarmupScheduler(optimizer, 1, WARM_UP, after)


def rates(stop=None, repair=False):
    """Return the rates of all epochs, of a run that is resumed after `stop` of them."""
    optimizer, scheduler = build()
    found = []
    for epoch in range(EPOCHS):
        if epoch == stop:
            torch.save((optimizer.state_dict(), scheduler.state_dict()), 'states.pt')
            optimizer, scheduler = build()
            of_optimizer, of_scheduler = torch.load('states.pt', weights_only=False)
            optimizer.load_state_dict(of_optimizer)
            scheduler.load_state_dict(of_scheduler)
            if repair:
                scheduler.after_scheduler.optimizer = optimizer
        found.append(round(optimizer.param_groups[0]['lr'], 4))
        optimizer.step()
        scheduler.step()
    return found


right = [
    round(RATE * min(epoch / WARM_UP, 1) * GAMMA ** max(epoch - WARM_UP, 0), 4)
    for epoch in range(EPOCHS)
]
seen = {'in one go': rates(), 'resumed': rates(4), 'repaired': rates(4, repair=True)}
print(f'warmup-scheduler {version("warmup-scheduler")}, torch {torch.__version__}: {seen}')
assert right == [0.0, 0.4, 0.8, 0.4, 0.2, 0.1, 0.05, 0.025]
assert seen == {
    'in one go': right,
    'resumed': [0.0, 0.4, 0.8, 0.4, 0.2, 0.2, 0.2, 0.2],
    'repaired': right,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore resume.py
