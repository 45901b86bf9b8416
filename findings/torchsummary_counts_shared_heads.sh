#!/usr/bin/env bash
# torchsummary 1.5.1: "Total params" counts a layer every time that it runs, so the heads of
# RetinaNet, FCOS or RPN, which run on every level of a pyramid, are counted five times.
#
# The table has a row for each call, and the total is the sum of the rows. A head of four
# convolutions of 256 channels has 2,360,320 parameters, and on levels of 64 to 4 pixels
# 11,801,600. Parameters that a model has itself, such as a table of positions, are in no row:
# a table of 100 x 64 and a linear layer of 64 x 64 have 10,560, and 4,160 in the summary. No
# warning. sum(p.numel() for p in model.parameters()) is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torchsummary==1.5.1 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > heads.py <<'PYTHON'
import contextlib
import io
import re
from importlib.metadata import version

import torch
from torch import nn
from torchsummary import summary


class Head(nn.Module):
    """A head that runs on five levels of a pyramid."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Conv2d(256, 256, 3, padding=1) for _ in range(4)])

    def forward(self, inputs):
        return [self.layers(inputs[..., :: 2**level, :: 2**level]) for level in range(5)]


class Positions(nn.Module):
    """A linear layer after a table of positions."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(100, 64))
        self.linear = nn.Linear(64, 64)

    def forward(self, inputs):
        return self.linear(inputs + self.table)


def counts(model, *shape):
    """Return parameters by torchsummary and by torch."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        summary(model, shape, device='cpu')
    [total] = re.findall(r'Total params: ([\d,]+)', text.getvalue())
    return int(total.replace(',', '')), sum(each.numel() for each in model.parameters())


seen = {
    'head': counts(Head(), 256, 64, 64),
    'positions': counts(Positions(), 100, 64),
}
print(f'torchsummary {version("torchsummary")}: {seen}')
weights = 4 * (256 * 256 * 9 + 256)
assert seen == {
    'head': (5 * weights, weights),
    'positions': (4160, 4160 + 6400),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore heads.py
