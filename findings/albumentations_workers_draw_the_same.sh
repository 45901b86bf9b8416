#!/usr/bin/env bash
# albumentations 2.0.8 with torch 2.13.0: all workers of a DataLoader draw the same random
# numbers, and draw them again in every epoch, also without a seed.
#
# Compose has a generator of its own, from which each worker starts with a copy. The seeds that
# torch gives to each worker and epoch reach random, NumPy and torch, not this generator, as
# they did reach albumentations 1. Eight equal images have eight random brightnesses. Seen: with
# no worker, 16 of them in two epochs of eight images; with four workers, two, each of them
# eight times, in every epoch. No warning. A worker_init_fn that calls
# set_random_seed(torch.initial_seed() % 2**32) of the Compose gives 16 again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q albumentations==2.0.8 albucore==0.0.24 torch==2.13.0 \
    numpy==2.4.6 opencv-python-headless==5.0.0.93
cd "$folder"
cat > workers.py <<'PYTHON'
import os

os.environ['NO_ALBUMENTATIONS_UPDATE'] = '1'

import albumentations
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info


class Images(Dataset):
    """Eight equal images of random brightness."""

    def __init__(self):
        change = albumentations.RandomBrightnessContrast(
            brightness_limit=0.3, contrast_limit=0, p=1
        )
        self.augment = albumentations.Compose([change])

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = np.full((8, 8, 3), 0.5, np.float32)
        return float(self.augment(image=image)['image'].mean())


def seed_worker(worker):
    """Give the generator the seed that torch has for this worker and epoch."""
    augment = get_worker_info().dataset.augment
    augment.set_random_seed(torch.initial_seed() % 2**32)


def brightnesses(workers, initialize=None):
    """Return how many values two epochs have, and whether both have the same."""
    torch.manual_seed(0)
    loader = DataLoader(Images(), num_workers=workers, worker_init_fn=initialize)
    first, second = [[each.item() for each in loader] for _ in range(2)]
    return len({*first, *second}), first == second


seen = {
    'no worker': brightnesses(0),
    'four workers': brightnesses(4),
    'seeded workers': brightnesses(4, seed_worker),
}
print(f'albumentations {albumentations.__version__}, torch {torch.__version__}: {seen}')
assert seen == {
    'no worker': (16, False),
    'four workers': (2, True),
    'seeded workers': (16, False),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore workers.py
