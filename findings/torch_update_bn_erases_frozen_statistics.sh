#!/usr/bin/env bash
# torch 2.13.0: swa_utils.update_bn sets the statistics of frozen batch norm layers to a mean of 0
# and a variance of 1, and leaves them so.
#
# It resets all batch norm layers, calls model.train() and runs the data. Detectors keep the
# pretrained statistics of their backbone: their train() puts these layers back into evaluation,
# so they never see the data that should fill them again. A frozen layer with a mean of 5 and a
# variance of 4, on data of exactly these, has an output of mean 0 and variance 1; after
# update_bn it has one of mean 5 and variance 4, its input. The layer that follows learns its new
# statistics from that. No warning, and the documentation names no frozen layers. Right are the
# frozen statistics as they were. Copy them back after the call, and run the data once more.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > frozen.py <<'PYTHON'
import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn


class Network(nn.Module):
    """A frozen layer and one that learns its statistics."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.BatchNorm1d(1, affine=False)
        self.frozen.running_mean.fill_(5.0)
        self.frozen.running_var.fill_(4.0)
        self.head = nn.BatchNorm1d(1, affine=False)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, inputs):
        return self.head(self.frozen(inputs))


def statistics(layer):
    """Return mean and variance of a layer."""
    return round(layer.running_mean.item(), 3), round(layer.running_var.item(), 2)


# Batches with a mean of 5 and a variance of 4, half of the values 3 and half 7.
batch = np.tile([3.0, 7.0], 500)
model = Network()
before = (batch - model.frozen.running_mean.item()) / model.frozen.running_var.item() ** 0.5
update_bn([torch.tensor(batch[:, None], dtype=torch.float32)] * 3, model)
with torch.no_grad():
    after = model.frozen(torch.tensor(batch[:, None], dtype=torch.float32)).numpy()
seen = {
    'frozen layer': statistics(model.frozen),
    'layer behind it': statistics(model.head),
    'output before': (round(float(before.mean()), 3), round(float(before.var()), 2)),
    'output after': (round(float(after.mean()), 3), round(float(after.var()), 2)),
}
print(f'torch {torch.__version__}: {seen}')
assert seen == {
    'frozen layer': (0.0, 1.0),
    'layer behind it': (5.0, 4.0),
    'output before': (0.0, 1.0),
    'output after': (5.0, 4.0),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore frozen.py
