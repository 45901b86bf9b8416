#!/usr/bin/env bash
# torch 2.13.0: item() of a sum, mean, maximum or minimum of a sharded tensor is that of the shard
# of the rank, so each rank logs another number and none of them is right.
#
# A reduction of a DTensor gives a partial one, whose parts are not added up before they are
# needed; item(), float() and bool() take the part of the rank. FSDP2 has all weights and
# gradients as DTensors. A weight of 1 to 4 on two ranks (gloo) has a sum of 10, a mean of 2.5, a
# maximum of 4 and a minimum of 1. Seen: 3, 1.5, 2 and 1 on rank 0, 7, 3.5, 4 and 3 on rank 1. So
# `weight.abs().max() > 3` is the same on both ranks, and `weight.abs().max().item() > 3` is
# not. No warning. full_tensor() before item() is right. The norm of clip_grad_norm_ is reduced.
# Reported as issue 166638 of pytorch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > item.py <<'PYTHON'
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

NAMES = ('sum', 'mean', 'max', 'min')


def reductions(rank, whole):
    """Write what one of two ranks reads from a sharded weight."""
    store = dist.FileStore('store', 2)
    dist.init_process_group('gloo', store=store, rank=rank, world_size=2)
    model = nn.Linear(1, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(whole))
    fully_shard(model, mesh=init_device_mesh('cpu', (2,)))
    weight = model.weight.detach()
    found = [getattr(weight, name)() for name in NAMES]
    model(torch.ones(1, 1)).sum().backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    seen = {
        'item': [each.item() for each in found],
        'full': [each.full_tensor().item() for each in found],
        'norm': norm.item(),
        'larger': bool(weight.max() > 3),
    }
    torch.save(seen, f'{rank}.pt')
    dist.destroy_process_group()


if __name__ == '__main__':
    whole = np.arange(1, 5, dtype=np.float32)[:, None]
    torch.multiprocessing.spawn(reductions, (whole,), 2)
    seen = [torch.load(f'{rank}.pt') for rank in range(2)]
    print(f'torch {torch.__version__}: {seen}')
    right = [float(getattr(whole, name)()) for name in NAMES]
    parts = [[float(getattr(part, name)()) for name in NAMES] for part in np.split(whole, 2)]
    assert right == [10.0, 2.5, 4.0, 1.0]
    assert parts == [[3.0, 1.5, 2.0, 1.0], [7.0, 3.5, 4.0, 3.0]]
    assert seen == [
        {'item': part, 'full': right, 'norm': 2.0, 'larger': True} for part in parts
    ], 'the behavior has changed'
PYTHON
venv/bin/python -W ignore item.py 2> errors.txt || { cat errors.txt; exit 1; }
