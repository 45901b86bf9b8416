#!/usr/bin/env bash
# accelerate 1.15.0: with gradient_accumulation_steps=4, the last update of an epoch has the
# gradient of its batches divided by 4, also if only one batch is left for it.
#
# accelerator.backward divides each loss by gradient_accumulation_steps, and accumulate()
# makes an update at the end of the data, however few passes it has. Each batch has a gradient
# of 1, so each update should have one of 1. Seen with six batches: 1 and 0.5, with five: 1
# and 0.25. An epoch of three batches has 0.75 at its only update. No warning. MMEngine divides
# the last ones of a training by their number. Use a multiple of 4 batches.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q accelerate==1.15.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > updates.py <<'PYTHON'
import torch
from accelerate import Accelerator, __version__
from torch.utils.data import DataLoader


def gradients(batches):
    """Return the gradient of each update of an epoch of equal batches."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = torch.nn.Linear(1, 1, bias=False)
    model, optimizer, data = accelerator.prepare(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(torch.ones(batches, 1), batch_size=1),
    )
    found = []
    for inputs in data:
        with accelerator.accumulate(model):
            accelerator.backward(model(inputs).mean())
            if accelerator.sync_gradients:
                found.append(model.weight.grad.item())
            optimizer.step()
            optimizer.zero_grad()
    return found


seen = {batches: gradients(batches) for batches in (8, 6, 5, 3)}
print(f'accelerate {__version__}: {seen}')
assert seen == {
    8: [1.0, 1.0],
    6: [1.0, 0.5],
    5: [1.0, 0.25],
    3: [0.75],
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore updates.py
