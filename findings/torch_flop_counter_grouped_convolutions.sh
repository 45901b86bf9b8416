#!/usr/bin/env bash
# torch 2.13.0 and 2.15.0: FlopCounterMode counts the backward pass of a convolution with G
# groups G + 1 times as long as the forward pass, where it is twice as long.
#
# The gradient of the weights costs as much as the forward pass. The counter takes it for one
# of a convolution without groups, whose cost is G times that. Of a depthwise convolution of
# 32 channels it sees 33 forward passes in the backward pass, so a training step, which costs
# 3 of them, has 34. A step of a block of ConvNeXt has 2.9 times its operations. Without
# groups, and in the forward pass, the numbers are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > count.py <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def passes(model, channels):
    """Return the operations of the backward pass by those of the forward pass."""
    images = torch.randn(1, channels, 14, 14, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        output = model(images)
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    return backward.get_total_flops() / forward.get_total_flops()


def convolution(groups):
    return nn.Conv2d(32, 32, 3, padding=1, groups=groups, bias=False)


block = nn.Sequential(
    nn.Conv2d(96, 96, 7, padding=3, groups=96), nn.Conv2d(96, 384, 1), nn.Conv2d(384, 96, 1)
)
seen = {groups: passes(convolution(groups), 32) for groups in (1, 4, 32)}
seen['ConvNeXt'] = round((1 + passes(block, 96)) / 3, 1)
print(f'torch {torch.__version__}: {seen}')
assert seen == {1: 2.0, 4: 5.0, 32: 33.0, 'ConvNeXt': 2.9}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore count.py
