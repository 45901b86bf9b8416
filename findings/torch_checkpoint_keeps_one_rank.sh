#!/usr/bin/env bash
# torch 2.13.0 and 2.15.0: torch.distributed.checkpoint keeps the value of one rank for each
# name, so what differs between ranks, such as random numbers or the place in the data, is lost.
#
# Values that are not sharded are taken for equal on all ranks, plain tensors too: one rank,
# not the same for all values, writes its own, and all ranks load that. Two ranks save a
# tensor and a number of 0 on rank 0 and of 1 on rank 1, and their random states. Seen after
# loading: both have a tensor of 0 and a number of 1, which no rank had, and draw the same
# random numbers from then on, so both augment alike. No warning. Put the rank into the name.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > ranks.py <<'PYTHON'
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import multiprocessing

STORE = Path('store').absolute().as_uri()


def work(rank, found):
    dist.init_process_group('gloo', init_method=STORE, rank=rank, world_size=2)
    for form in ('name', 'name of rank'):
        name = 'mine' if form == 'name' else f'mine of {rank}'
        torch.manual_seed(rank)
        state = dict(tensor=torch.tensor(rank), number=rank, random=torch.get_rng_state())
        checkpoint.save({name: state}, checkpoint_id=form)
        empty = dict(tensor=torch.tensor(-1), number=-1, random=torch.get_rng_state())
        loaded = {name: empty}
        checkpoint.load(loaded, checkpoint_id=form)
        torch.set_rng_state(loaded[name]['random'])
        drawn = torch.rand(1).item()
        own = drawn == torch.rand(1, generator=torch.Generator().manual_seed(rank)).item()
        found[form, rank] = loaded[name]['tensor'].item(), loaded[name]['number'], own
    dist.destroy_process_group()


if __name__ == '__main__':
    found = multiprocessing.Manager().dict()
    multiprocessing.spawn(work, (found,), nprocs=2)
    seen = {form: [found[form, rank] for rank in (0, 1)] for form in ('name', 'name of rank')}
    print(f'torch {torch.__version__}: {seen}')
    assert seen == {
        'name': [(0, 1, False), (0, 1, True)],
        'name of rank': [(0, 0, True), (1, 1, True)],
    }, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore ranks.py
