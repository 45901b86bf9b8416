#!/usr/bin/env bash
# torch 2.13.0: utils.checkpoint.checkpoint moves the running statistics of batch norm twice in
# every update, so their momentum is 0.19 in place of 0.1.
#
# The backward pass runs the segment again, and batch norm takes the second run for another
# batch. Gradients are right, and the state of random generators is put back; buffers are not,
# which the documentation does not say. After one pass over a batch with a mean of 4 the running
# mean should be 0.1 * 4 = 0.4. Seen: 0.4 without checkpoint, and 0.76 = 4 * (1 - 0.9^2) with it,
# with both values of use_reentrant; num_batches_tracked is 2. No warning. `with_cp=True` of the
# ResNets of MMDetection and MMSegmentation does this. A momentum of 1 - 0.9^0.5 = 0.0513 gives
# the usual one; evaluation mode (frozen layers) is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > twice.py <<'PYTHON'
import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

BATCH = np.array([[3.0], [3.0], [5.0], [5.0]])


def statistics(momentum=0.1, training=True, **flags):
    """Return the running mean after an update, and the number of batches that the layer saw."""
    layer = torch.nn.BatchNorm1d(1, momentum=momentum, dtype=torch.float64).train(training)
    inputs = torch.tensor(BATCH, requires_grad=True)
    outputs = checkpoint(layer, inputs, **flags) if flags else layer(inputs)
    outputs.square().sum().backward()
    return round(layer.running_mean.item(), 4), layer.num_batches_tracked.item()


once = round(0.1 * BATCH.mean(), 4)
twice = round((1 - 0.9**2) * BATCH.mean(), 4)
seen = {
    'without': statistics(),
    'reentrant': statistics(use_reentrant=True),
    'not reentrant': statistics(use_reentrant=False),
    'smaller momentum': statistics(1 - 0.9**0.5, use_reentrant=False),
    'frozen': statistics(training=False, use_reentrant=False),
}
print(f'torch {torch.__version__}: {seen}')
assert seen == {
    'without': (once, 1),
    'reentrant': (twice, 2),
    'not reentrant': (twice, 2),
    'smaller momentum': (once, 2),
    'frozen': (0.0, 0),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore twice.py
