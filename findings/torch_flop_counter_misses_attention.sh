#!/usr/bin/env bash
# torch 2.13.0: FlopCounterMode counts no operation of scaled_dot_product_attention on a CPU,
# and none at all of nn.TransformerEncoderLayer in inference.
#
# The counter knows kernels by name, and takes those that it does not know for free. Those of
# attention on a CPU are such, and so is that of a whole encoder layer, which runs with eval()
# and no_grad(). Attention of 100 positions, 4 heads and 8 channels has 4 * 4 * 100^2 * 8 =
# 1.28 million operations, which the counter finds on the meta device. Seen on a CPU: 0. Of an
# encoder layer it finds all of 2.92 million in training, where dropout has attention computed
# by other kernels, and 0 in inference. No warning. sdpa_kernel(SDPBackend.MATH) around
# attention has it counted; for the layer, torch.backends.mha.set_fastpath_enabled(False) too.
# torch 2.15.0 counts attention on a CPU; its encoder layer in inference still has 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > count.py <<'PYTHON'
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

POSITIONS, HEADS, CHANNELS = 100, 4, 32


def count(function):
    """Return the millions of operations that the counter sees in a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return round(counter.get_total_flops() / 1e6, 2)


def attention(device):
    queries = torch.ones(1, HEADS, POSITIONS, CHANNELS // HEADS, device=device)
    return count(lambda: scaled_dot_product_attention(queries, queries, queries))


layer = nn.TransformerEncoderLayer(CHANNELS, HEADS, 64, batch_first=True)
inputs = torch.ones(1, POSITIONS, CHANNELS)
products = 2 * POSITIONS * CHANNELS * (4 * CHANNELS + 2 * 64)
seen = {
    'attention, meta': attention('meta'),
    'attention, cpu': attention('cpu'),
    'layer, by hand': round((products + 4 * POSITIONS**2 * CHANNELS) / 1e6, 2),
    'layer, training': count(lambda: layer.train()(inputs)),
}
with torch.no_grad():
    seen['layer, inference'] = count(lambda: layer.eval()(inputs))
    with sdpa_kernel(SDPBackend.MATH):
        seen['attention, math'] = attention('cpu')
        torch.backends.mha.set_fastpath_enabled(False)
        seen['layer, math'] = count(lambda: layer.eval()(inputs))
print(f'torch {torch.__version__}: {seen}')
assert seen == {
    'attention, meta': 1.28,
    'attention, cpu': 0.0,
    'layer, by hand': 2.92,
    'layer, training': 2.92,
    'layer, inference': 0.0,
    'attention, math': 1.28,
    'layer, math': 2.92,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore count.py
