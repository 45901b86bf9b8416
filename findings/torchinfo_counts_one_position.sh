#!/usr/bin/env bash
# torchinfo 1.8.0: "Total mult-adds" counts a linear layer once for each image, however many
# positions it is applied to, so a transformer has a small part of its operations.
#
# A layer of 64 x 64 weights makes 100 * 64 * 64 = 409,600 of them at 100 positions. The
# summary has 4,160, its parameters. The same layer as a convolution of 1 x 1 has the right
# number, plus biases, since those are multiplied by positions. Attention has none at all. An
# encoder layer of 64 channels makes 4,556,800 of them at 100 positions, and has 16,832, 271
# times too few. A transposed convolution with a stride of 2 has four times too many, as it is
# multiplied by positions of the output, while its kernel is applied to those of the input. No
# warning. FlopCounterMode of torch gives the right numbers, twice as large.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torchinfo==1.8.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > count.py <<'PYTHON'
import torch
import torchinfo
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def counts(layer, *shape):
    """Return the multiplications of a layer, by torchinfo and by torch."""
    inputs = torch.zeros(shape)
    info = torchinfo.summary(layer, input_data=inputs, verbose=0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        layer.train()(inputs)
    return info.total_mult_adds, counter.get_total_flops() // 2


seen = {
    'linear': counts(torch.nn.Linear(64, 64), 1, 100, 64),
    'convolution': counts(torch.nn.Conv1d(64, 64, 1), 1, 64, 100),
    'encoder': counts(
        torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 1, 100, 64
    ),
    'transposed': counts(torch.nn.ConvTranspose2d(16, 16, 2, 2, bias=False), 1, 16, 32, 32),
}
print(f'torchinfo {torchinfo.__version__}: {seen}')
assert seen == {
    'linear': (4160, 100 * 64 * 64),
    'convolution': (100 * 64 * 64 + 100 * 64, 100 * 64 * 64),
    'encoder': (16832, 4 * 409600 + 2 * 4 * 100 * 100 * 16 + 2 * 100 * 64 * 128),
    'transposed': (4 * 32 * 32 * 16 * 16 * 4, 32 * 32 * 16 * 16 * 4),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore count.py
