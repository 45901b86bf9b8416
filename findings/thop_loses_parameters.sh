#!/usr/bin/env bash
# thop 0.1.1: profile counts neither operations nor parameters of nn.MultiheadAttention, nor a
# parameter that a model has itself, and what two modules share it counts several times.
#
# It counts layers without children, of kinds that it knows, as they run. The projections of
# attention are parameters of the attention itself, and its layers never run: of one with 64
# channels, 16,640 parameters and 2,918,400 operations at 100 positions, it finds 0 and 0. A
# table of positions, as ViT and DETR have it, is missing too. A linear layer that two modules
# share has twice its parameters and four times its operations: it gets a counter for each
# module, both add to the same number, and the total has this number twice. verbose=True has no
# warning. Right are sum(p.numel() for p in model.parameters()) and FlopCounterMode of torch,
# which counts additions, too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q thop==0.1.1.post2209072238 torch==2.13.0 numpy==2.4.6 \
    setuptools==80.10.2
cd "$folder"
cat > count.py <<'PYTHON'
import contextlib
import io
from importlib.metadata import version

import torch
from thop import profile
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


class Attention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, inputs):
        return self.attention(inputs, inputs, inputs)[0]


class Positions(nn.Module):
    """A linear layer after a table of positions."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(100, 64))
        self.linear = nn.Linear(64, 64)

    def forward(self, inputs):
        return self.linear(inputs + self.table)


class Shared(nn.Module):
    """Two branches with the same linear layer."""

    def __init__(self):
        super().__init__()
        linear = nn.Linear(64, 64)
        self.first = nn.Sequential(linear, nn.ReLU())
        self.second = nn.Sequential(linear, nn.ReLU())

    def forward(self, inputs):
        return self.second(self.first(inputs))


def counts(model):
    """Return multiplications and parameters by thop and by torch, and what thop printed."""
    inputs = torch.zeros(1, 100, 64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(inputs)
    right = counter.get_total_flops() // 2, sum(each.numel() for each in model.parameters())
    with contextlib.redirect_stdout(io.StringIO()) as text:
        found = profile(model, inputs=(inputs,), verbose=True)
    return tuple(map(int, found)), right, 'WARN' in text.getvalue()


seen = {each.__name__: counts(each()) for each in (Attention, Positions, Shared)}
print(f'thop {version("thop")}: {seen}')
assert seen == {
    'Attention': ((0, 0), (4 * 409600 + 2 * 4 * 100 * 100 * 16, 16640), False),
    'Positions': ((409600, 4160), (409600, 4160 + 6400), False),
    'Shared': ((4 * 819200, 2 * 4160), (819200, 4160), False),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore count.py
