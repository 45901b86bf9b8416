#!/usr/bin/env bash
# torch 2.13.0 and 2.15.0: get_optimizer_state_dict, which only reads, leaves a fresh Adam at step 1.
#
# To have a state to read, the function takes a step with a learning rate of zero, and does
# not take it back: each parameter then has step 1 and moments of zero. A checkpoint written
# before the first update is enough. Adam's bias corrections are those of the second update
# from then on, so the first update moves a weight by 0.074 in place of 0.1. No warning.
# Right is a step of 0, or no state. An optimizer that has made a step is read as it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > read.py <<'PYTHON'
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict


def first_update(kind, read):
    """Return the steps that the optimizer counts and how far its first update moves."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0)
    if read:
        get_optimizer_state_dict(model, optimizer)
    before = model.weight.item()
    steps = [int(state['step']) for state in optimizer.state.values()]
    model.weight.grad = torch.ones(1, 1)
    optimizer.step()
    return steps, round(before - model.weight.item(), 4)


seen = [
    first_update(kind, read)
    for kind in (torch.optim.Adam, torch.optim.AdamW)
    for read in (False, True)
]
print(f'torch {torch.__version__}: {seen}')
assert seen == [([], 0.1), ([1], 0.0744)] * 2, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore read.py
