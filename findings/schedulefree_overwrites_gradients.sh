#!/usr/bin/env bash
# schedulefree 1.4.1: AdamWScheduleFree.step overwrites the gradients with its update, so a
# gradient norm that is read after the step says nothing of the gradient.
#
# It divides p.grad in place by the root of the second moment and adds the weight decay to it;
# SGDScheduleFree and RAdamScheduleFree add the decay. The optimizers of torch leave gradients
# as they are, and so does AdamWScheduleFreeReference of the same package. Of two gradients, 300
# and 400, with a norm of 500, weights of 2 and -3 and a decay of 0.1, AdamWScheduleFree leaves
# 1.2 and 0.7: a log of norms after each step stays near the root of the number of weights,
# whatever the loss does. A second backward pass without zero_grad() adds to the update.
# Its README does not say so. Read gradients before the step.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q schedulefree==1.4.1 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > gradients.py <<'PYTHON'
from importlib.metadata import version

import schedulefree
import torch


def left(kind):
    """Return the gradients of 300 and 400 after a step, and their norm."""
    weight = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = kind([weight], lr=0.1, weight_decay=0.1)
    if hasattr(optimizer, 'train'):
        optimizer.train()
    weight.grad = torch.tensor([300.0, 400.0])
    optimizer.step()
    return [round(each, 1) for each in (*weight.grad.tolist(), weight.grad.norm().item())]


kinds = (
    torch.optim.AdamW,
    schedulefree.AdamWScheduleFreeReference,
    schedulefree.AdamWScheduleFree,
    schedulefree.SGDScheduleFree,
    schedulefree.RAdamScheduleFree,
)
seen = {kind.__name__: left(kind) for kind in kinds}
print(f'schedulefree {version("schedulefree")}, torch {torch.__version__}: {seen}')
assert seen == {
    'AdamW': [300.0, 400.0, 500.0],
    'AdamWScheduleFreeReference': [300.0, 400.0, 500.0],
    'AdamWScheduleFree': [1.2, 0.7, 1.4],
    'SGDScheduleFree': [300.2, 399.7, 499.9],
    'RAdamScheduleFree': [300.2, 399.7, 499.9],
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore gradients.py | tail -n 1
