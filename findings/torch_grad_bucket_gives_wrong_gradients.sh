#!/usr/bin/env bash
# torch 2.13.0: GradBucket.gradients() gives a DDP communication hook wrong gradients of
# parameters that are complex, or in channels_last.
#
# DDP stores a complex gradient as pairs of reals, so the buffer of the bucket is real and
# twice as long as the parameters. gradients() cuts it by the shapes and offsets of the
# complex parameters: each view has half of the numbers, and all but the first begin in the
# gradient of another parameter. DDP stores the gradient of a dense parameter in the memory
# format of that, while the views of gradients() are contiguous: in channels_last their
# numbers are in another order. No error and no warning; a hook that works on buffer() is
# right. Seen with one rank, gloo. Two complex weights of 3 numbers: a buffer of 12 reals with
# views at 0 and 3, of 3 reals each; right are 0 and 6, of 6. A convolution of 2 channels and
# 2 x 2 pixels whose gradient is 0 to 7: 0, 4, 1, 5, 2, 6, 3, 7.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > bucket.py <<'PYTHON'
import os

import torch
import torch.distributed as dist
from torch import nn

store = dist.FileStore(os.path.join(os.getcwd(), 'store'), 1)
dist.init_process_group('gloo', store=store, rank=0, world_size=1)
seen = []


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.second = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def forward(self, inputs):
        return (self.first * self.second * inputs).abs().sum()


def hook(state, bucket):
    views = [(view.storage_offset(), view.numel()) for view in bucket.gradients()]
    seen.append((str(bucket.buffer().dtype), bucket.buffer().numel(), views))
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def channels_last(state, bucket):
    seen.append([view.flatten().tolist() for view in bucket.gradients()])
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


model = nn.parallel.DistributedDataParallel(Model())
model.register_comm_hook(None, hook)
model(torch.arange(1.0, 4)).backward()
print(f'torch {torch.__version__}: {seen[0]}')
assert seen[0] == ('torch.float32', 12, [(0, 3), (3, 3)]), 'the behavior has changed'

layer = nn.Conv2d(2, 1, 2, bias=False).to(memory_format=torch.channels_last)
model = nn.parallel.DistributedDataParallel(layer)
model.register_comm_hook(None, channels_last)
model(torch.arange(8.0).reshape(1, 2, 2, 2)).sum().backward()
print(f'in channels_last: {seen[1]}, right is {layer.weight.grad.flatten().tolist()}')
assert layer.weight.grad.flatten().tolist() == list(range(8))
assert seen[1] == [[0, 4, 1, 5, 2, 6, 3, 7]], 'the behavior has changed'
PYTHON
venv/bin/python bucket.py
