#!/usr/bin/env bash
# mmengine 0.10.7 with torch 2.13.0: workers of a dataloader draw the same random numbers in
# every epoch, unless they are persistent, so a training sees one epoch of augmentations.
#
# Runner gives each worker a seed made of its rank, its number and the seed of the run, and not
# of the epoch. Workers that are not persistent, which is the default, start in each epoch, with
# that seed. Only the order of the images changes. Two workers draw for 8 images in four
# epochs: seen are 8 numbers, each in every epoch, where torch's own seeds give 32. A loader
# that is built again, as for a resumed run, starts with the first epoch's numbers, persistent
# or not. No warning. Set persistent_workers=True. Loops by iteration have a single epoch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mmengine==0.10.7 torch==2.13.0 numpy==2.4.6 \
    opencv-python-headless==5.0.0.93 setuptools==80.10.2
cd "$folder"
cat > repeat.py <<'PYTHON'
import random

import numpy as np
import torch
from mmengine import __version__
from mmengine.runner import Runner


class Augmented(torch.utils.data.Dataset):
    """Eight images, each with a number that random, NumPy and torch draw for it."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return random.random(), np.random.rand(), torch.rand(1).item()


def epochs(loader):
    """Return what the libraries draw in each of four epochs."""
    seen = []
    for epoch in range(4):
        if hasattr(loader.sampler, 'set_epoch'):
            loader.sampler.set_epoch(epoch)
        seen.append([tuple(float(number[0]) for number in batch) for batch in loader])
    return seen


def of_mmengine(persistent):
    """Return the same for a loader that Runner builds."""
    loader = Runner.build_dataloader(
        dict(
            dataset=Augmented(),
            sampler=dict(type='DefaultSampler', shuffle=True),
            batch_size=1,
            num_workers=2,
            persistent_workers=persistent,
        ),
        seed=7,
    )
    return epochs(loader)


def numbers(drawn):
    """Return how many different numbers each of the three libraries has drawn."""
    return [len({each[library] for epoch in drawn for each in epoch}) for library in range(3)]


torch.manual_seed(7)
right = epochs(torch.utils.data.DataLoader(Augmented(), shuffle=True, num_workers=2))
once, kept = of_mmengine(False), of_mmengine(True)
seen = {
    'torch': numbers(right),
    'mmengine': numbers(once),
    'persistent': numbers(kept),
    'equal epochs': once[0] == once[1] == once[2] == once[3],
    'built again': of_mmengine(True)[0] == kept[0],
}
print(f'mmengine {__version__}, torch {torch.__version__}: {seen}')
assert seen == {
    'torch': [32, 32, 32],
    'mmengine': [8, 8, 8],
    'persistent': [32, 32, 32],
    'equal epochs': True,
    'built again': True,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore repeat.py
