#!/usr/bin/env bash
# pytorch-optimizer 4.1.0: the first updates of Lamb are 10, 5.2, 3.6 times as long as the
# learning rate times the norm of the weights.
#
# LAMB scales its update to the norm of the weights, so |update| = lr * |weights| at every
# step (You et al., 2020, without decay). By default the package divides the learning rate by
# 1 - beta1^step after this scaling, which has already taken the bias correction out. A
# large learning rate, which LAMB is made for, meets a factor of 10 at the first update.
# With adam_debias=True the factors are 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pytorch-optimizer==4.1.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > steps.py <<'PYTHON'
from importlib.metadata import version

import torch
from pytorch_optimizer import Lamb


def lengths(**kwargs):
    """Return the lengths of four updates by that of the paper."""
    weights = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimizer = Lamb([weights], lr=1e-3, weight_decay=0.0, **kwargs)
    seen = []
    for _ in range(4):
        before = weights.detach().clone()
        weights.grad = torch.ones_like(weights)
        optimizer.step()
        length = (weights.detach() - before).norm() / (1e-3 * before.norm())
        seen.append(round(length.item(), 2))
    return seen


seen = {'default': lengths(), 'adam_debias=True': lengths(adam_debias=True)}
print(f'pytorch-optimizer {version("pytorch-optimizer")}, torch {torch.__version__}: {seen}')
assert seen == {
    'default': [10.0, 5.26, 3.69, 2.91],
    'adam_debias=True': [1.0, 1.0, 1.0, 1.0],
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore steps.py
