#!/usr/bin/env bash
# timm 1.0.31: MultiStepLRScheduler decays an epoch before its milestones, and at them if the same
# schedule is stepped by updates.
#
# With milestones 3 and 6, epochs 0 and 1 have the full rate, not 0 to 2. torch's MultiStepLR
# decays at the epoch that a milestone names. A comment in the source says that this is kept for
# old schedules; the documentation of the class and of create_scheduler_v2 does not. The offset is
# one count of whatever is counted, so with step_on_epochs=False it is one update in place of an
# epoch: a run changes if that switch does. Seen, rates of eight epochs for a factor of 0.1: 1, 1,
# 0.1, 0.1, 0.1, 0.01, 0.01, 0.01 by epochs; 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01 by updates and
# with torch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 pillow==13.0.0 pyyaml==6.0.4 \
    huggingface-hub==2.4.0 safetensors==0.8.0
# Installed without CUDA's torch, which torchvision's operators need; schedulers use none.
"$folder/venv/bin/pip" install -q --no-deps torchvision==0.28.0 timm==1.0.31
cd "$folder"
cat > milestones.py <<'PYTHON'
import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # This torch has no CUDA: name the operators that the import looks for.
    operators = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        operators.define(f'{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor')

import timm
from timm.scheduler import create_scheduler_v2

EPOCHS, UPDATES, MILESTONES, FACTOR = 8, 10, [3, 6], 0.1


def build():
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)


def by_timm(step_on_epochs):
    """Return the rate in the middle of each epoch, stepped as in timm's train.py."""
    optimizer = build()
    scheduler, _ = create_scheduler_v2(
        optimizer,
        'multistep',
        num_epochs=EPOCHS,
        decay_milestones=MILESTONES,
        decay_rate=FACTOR,
        warmup_epochs=0,
        step_on_epochs=step_on_epochs,
        updates_per_epoch=UPDATES,
    )
    found = []
    for epoch in range(EPOCHS):
        for update in range(UPDATES):
            if update == UPDATES // 2:
                found.append(round(optimizer.param_groups[0]['lr'], 4))
            scheduler.step_update(epoch * UPDATES + update + 1)
        scheduler.step(epoch + 1)
    return found


def by_torch():
    optimizer = build()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, MILESTONES, FACTOR)
    found = []
    for _ in range(EPOCHS):
        found.append(round(optimizer.param_groups[0]['lr'], 4))
        optimizer.step()
        scheduler.step()
    return found


seen = {'by epochs': by_timm(True), 'by updates': by_timm(False), 'torch': by_torch()}
print(f'timm {timm.__version__}, torch {torch.__version__}: {seen}')
right = [1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01]
assert seen == {
    'by epochs': [*right[1:], right[-1]],
    'by updates': right,
    'torch': right,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore milestones.py
