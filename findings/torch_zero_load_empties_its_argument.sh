#!/usr/bin/env bash
# torch 2.13.0 and 2.15.0: ZeroRedundancyOptimizer.load_state_dict empties the state that it is given.
#
# Each rank keeps the entries of its own parameters and sets all others to None, in the
# dictionary of the caller. A second use of it, such as a second optimizer, a comparison or
# a checkpoint that is written again, finds states missing: after one load on each of two
# ranks, both have half of the moments. Adam itself leaves its argument as it is. Load a
# deep copy.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > load.py <<'PYTHON'
import copy

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.optim import ZeroRedundancyOptimizer


def parameters():
    return [nn.Parameter(torch.ones(2)) for _ in range(4)]


def left(optimizer, state):
    """Return how many entries of a state are left after the optimizer has loaded it."""
    optimizer.load_state_dict(state)
    return sum(entry is not None for entry in state['state'].values())


def run(rank):
    store = dist.FileStore('store', 2)
    dist.init_process_group('gloo', store=store, rank=rank, world_size=2)
    trained = torch.optim.Adam(parameters(), lr=0.1)
    for parameter in trained.param_groups[0]['params']:
        parameter.grad = torch.ones(2)
    trained.step()
    state = trained.state_dict()
    seen = {
        'Adam': left(torch.optim.Adam(parameters(), lr=0.1), copy.deepcopy(state)),
        'ZeRO': left(
            ZeroRedundancyOptimizer(parameters(), torch.optim.Adam, lr=0.1),
            copy.deepcopy(state),
        ),
    }
    if rank == 0:
        print(f'torch {torch.__version__}: entries left, of 4: {seen}')
    assert seen == {'Adam': 4, 'ZeRO': 2}, 'the behavior has changed'
    dist.destroy_process_group()


if __name__ == '__main__':
    multiprocessing.spawn(run, (), 2)
PYTHON
venv/bin/python -W ignore load.py
