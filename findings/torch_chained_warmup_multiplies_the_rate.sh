#!/usr/bin/env bash
# torch 2.13.0: ChainedScheduler with a warm-up and LambdaLR, or CosineAnnealingWarmRestarts,
# either loses the warm-up or multiplies the rate far beyond what the optimizer was given.
#
# LinearLR multiplies the rate that it finds by the ratio of two of its factors. The other two
# do not multiply: they set the rate anew, from the initial one. If they come second, the first
# update has the rate of the warm-up and the next ones do not; if they come first, the ratio
# 0.4 / 0.1 acts on a rate that was never reduced. The documentation says that the schedulers
# must be chainable, not which are; nothing warns. CosineAnnealingLR, ExponentialLR,
# PolynomialLR and MultiStepLR are. Seen with a rate of 1 and LinearLR of factors 0.1, 0.4, 0.7,
# 1: with LambdaLR of 0.9**n first 0.1, 3.6, 1.42, 1.04, second 1, 0.9, 0.81, 0.73; right is the
# product of both schedules, 0.1, 0.36, 0.57, 0.73, as ExponentialLR of 0.9 has it in both orders.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > chain.py <<'PYTHON'
import math

import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
)

WARM_UP = [0.1, 0.4, 0.7, 1.0]
PERIOD = 4


def warm_up(optimizer):
    return LinearLR(optimizer, WARM_UP[0], total_iters=len(WARM_UP) - 1)


def by_lambda(optimizer):
    return LambdaLR(optimizer, lambda epoch: 0.9**epoch)


def exponential(optimizer):
    return ExponentialLR(optimizer, 0.9)


def restarts(optimizer):
    return CosineAnnealingWarmRestarts(optimizer, PERIOD)


def rates(*builders):
    """Return the rates of the first updates under a chain of schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = ChainedScheduler([build(optimizer) for build in builders], optimizer)
    found = []
    for _ in WARM_UP:
        found.append(round(optimizer.param_groups[0]['lr'], 2))
        optimizer.step()
        scheduler.step()
    return found


powers = [0.9**epoch for epoch in range(len(WARM_UP))]
cosine = [(1 + math.cos(math.pi * epoch / PERIOD)) / 2 for epoch in range(len(WARM_UP))]
right = [round(a * b, 2) for a, b in zip(WARM_UP, powers)]
right_restarts = [round(a * b, 2) for a, b in zip(WARM_UP, cosine)]
seen = {
    'LambdaLR first': rates(by_lambda, warm_up),
    'LambdaLR second': rates(warm_up, by_lambda),
    'ExponentialLR first': rates(exponential, warm_up),
    'ExponentialLR second': rates(warm_up, exponential),
    'restarts first': rates(restarts, warm_up),
    'restarts second': rates(warm_up, restarts),
}
print(f'torch {torch.__version__}: {seen}; right are {right}, {right_restarts}')
assert right == [0.1, 0.36, 0.57, 0.73] and right_restarts == [0.1, 0.34, 0.35, 0.15]
assert seen == {
    'LambdaLR first': [0.1, 3.6, 1.42, 1.04],
    'LambdaLR second': [1.0, 0.9, 0.81, 0.73],
    'ExponentialLR first': right,
    'ExponentialLR second': right,
    'restarts first': [0.1, 3.41, 0.88, 0.21],
    'restarts second': [1.0, 0.85, 0.5, 0.15],
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore chain.py
