#!/usr/bin/env bash
# torch 2.13.0 and 2.15.0: optimizer.zero_grad() does not clear the gradients that FSDP2 has accumulated.
#
# After backward passes with set_requires_gradient_sync(False), fully_shard keeps the sum in
# an unsharded gradient that it owns; p.grad is None. zero_grad() of optimizer and model only
# see p.grad, so an update that is dropped (a loss that is not finite, a loss scale that is
# too large) leaks into the next one, without a word. DDP under no_sync() forgets it. Seen:
# the dropped pass has a gradient of 100, the next one of 1, and what remains is 101, on one
# rank or two. A dropped update needs a pass with synchronization before zero_grad().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > leak.py <<'PYTHON'
import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


def gradient(model, dropped, kept):
    """Return the gradient after a pass that is dropped and one that is kept."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    dropped(lambda: model(torch.full((1, 2), 100.0)).sum().backward())
    optimizer.zero_grad()
    model.zero_grad()
    kept(lambda: model(torch.ones(1, 2)).sum().backward())
    grad = next(model.parameters()).grad
    return getattr(grad, 'full_tensor', lambda: grad)().tolist()


def run(rank, ranks):
    store = dist.FileStore(f'store{ranks}', ranks)
    dist.init_process_group('gloo', store=store, rank=rank, world_size=ranks)
    sharded = fully_shard(nn.Linear(2, 1, bias=False), mesh=init_device_mesh('cpu', (ranks,)))

    def fsdp_without_sync(backward):
        sharded.set_requires_gradient_sync(False)
        backward()
        sharded.set_requires_gradient_sync(True)

    replicated = DistributedDataParallel(nn.Linear(2, 1, bias=False))

    def ddp_without_sync(backward):
        with replicated.no_sync():
            backward()

    seen = {
        'FSDP2': gradient(sharded, fsdp_without_sync, lambda backward: backward()),
        'DDP': gradient(replicated, ddp_without_sync, lambda backward: backward()),
    }
    if rank == 0:
        print(f'torch {torch.__version__}, {ranks} rank(s): {seen}')
    expected = {'FSDP2': [[101.0, 101.0]], 'DDP': [[1.0, 1.0]]}
    assert seen == expected, 'the behavior has changed'
    dist.destroy_process_group()


if __name__ == '__main__':
    for ranks in (1, 2):
        multiprocessing.spawn(run, (ranks,), ranks)
PYTHON
venv/bin/python -W ignore leak.py
