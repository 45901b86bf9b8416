#!/usr/bin/env bash
# torch 2.13.0: within one autocast block, a model keeps the weights of its first pass, so updates,
# an average that is swapped in, or perturbed weights have no effect on its outputs.
#
# Autocast keeps a copy of each weight in bfloat16 until the block ends, and does not notice that
# the weight changes. Two losses within a block, before and after the weights are moved, are
# equal, so that the sharpness of a minimum, the gain of a step, or the difference between
# weights and their average is exactly 0. A loop within a block sees the loss of its start in
# each iteration and goes on in the same direction. Seen: a loss of 16 four times, while the
# weights overshoot to -4; with one block for each pass it falls to 0. With no_grad it is
# the same. No warning. One block for each pass, or cache_enabled=False.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > cached.py <<'PYTHON'
import contextlib

import torch


def block(**kwargs):
    """Return an autocast block in bfloat16."""
    return torch.autocast('cpu', dtype=torch.bfloat16, **kwargs)


def trained(outer, inner):
    """Return the losses (weight of 4 to be 0) of four iterations, and the last weight."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 4.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)
    losses = []
    with outer():
        for _ in range(4):
            optimizer.zero_grad()
            with inner():
                loss = layer(torch.ones(1, 1)).float().square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, layer.weight.item()


def swapped(outer, inner):
    """Return the outputs of a model before and after other weights are put into it."""
    layer = torch.nn.Linear(1, 1, bias=False)
    outputs = []
    with outer(), torch.no_grad():
        for value in (1.0, 2.0):
            layer.load_state_dict(dict(weight=torch.tensor([[value]])))
            with inner():
                outputs.append(layer(torch.ones(1, 1)).item())
    return outputs


def uncached():
    """Return an autocast block that keeps nothing."""
    return block(cache_enabled=False)


none = contextlib.nullcontext
seen = {
    name: (*trained(*blocks), swapped(*blocks))
    for name, blocks in dict(
        one=(block, none), each=(none, block), uncached=(uncached, none), float32=(none, none)
    ).items()
}
print(f'torch {torch.__version__}: {seen}')
assert seen == {
    'one': ([16.0, 16.0, 16.0, 16.0], -4.0, [1.0, 1.0]),
    'each': ([16.0, 4.0, 1.0, 0.25], 0.25, [1.0, 2.0]),
    'uncached': ([16.0, 4.0, 1.0, 0.25], 0.25, [1.0, 2.0]),
    'float32': ([16.0, 4.0, 1.0, 0.25], 0.25, [1.0, 2.0]),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore cached.py
