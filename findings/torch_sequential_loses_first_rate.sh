#!/usr/bin/env bash
# torch 2.13.0: SequentialLR with a warm-up and MultiplicativeLR never reaches the rate of the
# optimizer; with OneCycleLR it warms up to a 25th of it.
#
# At a milestone the next scheduler sets its first rate, by a formula that MultiplicativeLR does
# not have: it multiplies what the warm-up has left, so the whole rest of the run is scaled by
# it. ExponentialLR with the same factor starts from the optimizer's rate, as the example in
# the documentation of SequentialLR says. OneCycleLR puts its own start, max_lr / 25, in the
# place of the optimizer's rate when it is built, and the warm-up takes that for its target. No
# warning in either case. Seen with a rate of 1, LinearLR of factors 0.1, 0.4, 0.7 for three
# epochs and a factor of 0.9: 0.1, 0.4, 0.7, 0.63, 0.57, 0.51; right is 0.1, 0.4, 0.7, 1, 0.9,
# 0.81. With OneCycleLR(max_lr=1) the warm-up is 0.004, 0.016, 0.028.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > sequence.py <<'PYTHON'
import torch
from torch.optim.lr_scheduler import (
    ExponentialLR,
    LinearLR,
    MultiplicativeLR,
    OneCycleLR,
    SequentialLR,
)

WARM_UP = [0.1, 0.4, 0.7]


def rates(build):
    """Return the rates of six epochs: the warm-up, then those of another scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0, momentum=0.9)
    first = LinearLR(optimizer, WARM_UP[0], total_iters=len(WARM_UP))
    scheduler = SequentialLR(optimizer, [first, build(optimizer)], [len(WARM_UP)])
    found = []
    for _ in range(6):
        found.append(round(optimizer.param_groups[0]['lr'], 3))
        optimizer.step()
        scheduler.step()
    return found


seen = {
    'ExponentialLR': rates(lambda optimizer: ExponentialLR(optimizer, 0.9)),
    'MultiplicativeLR': rates(
        lambda optimizer: MultiplicativeLR(optimizer, lambda epoch: 0.9)
    ),
    'warm-up before OneCycleLR': rates(
        lambda optimizer: OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    )[: len(WARM_UP)],
}
print(f'torch {torch.__version__}: {seen}')
assert seen == {
    'ExponentialLR': [*WARM_UP, 1.0, 0.9, 0.81],
    'MultiplicativeLR': [*WARM_UP, 0.63, 0.567, 0.51],
    'warm-up before OneCycleLR': [0.004, 0.016, 0.028],
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore sequence.py
