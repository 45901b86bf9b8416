#!/usr/bin/env bash
# mmengine 0.10.7: with EMAHook(update_buffers=True), ranks validate with different statistics
# of batch norm, although SyncBuffersHook is there to make them equal.
#
# Each rank averages the statistics of its own images. SyncBuffersHook makes those of the
# model equal, and EMAHook then puts its own in their place, so that ranks validate different
# models, and a checkpoint has what rank 0 has seen. Two ranks with images of mean 3.5 and
# 13.5 have a running mean of 1.6 each without EMA. Seen with it: 0.2 and 1.3, where both
# should have the average of these. No warning. MMDetection's YOLOX has it, with its own
# SyncNormHook. SyncBN has equal statistics throughout.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mmengine==0.10.7 torch==2.13.0 numpy==2.4.6 \
    opencv-python-headless==5.0.0.93 setuptools==80.10.2
cd "$folder"
cat > ranks.py <<'PYTHON'
import torch
import torch.distributed as dist
from mmengine import __version__
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import multiprocessing, nn


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.validated = None

    def forward(self, inputs, mode='loss'):
        if mode == 'loss':
            return dict(loss=self.norm(inputs).mean())
        self.validated = self.norm.running_mean.item()
        return [{}]


class Nothing(BaseMetric):
    def process(self, *args):
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


def validated(rank, name, hooks):
    """Return the running mean with which each of two ranks validates."""
    model = Model()
    images = [dict(inputs=torch.tensor([index + 10.0 * rank])) for index in range(8)]

    def loader():
        return torch.utils.data.DataLoader(images, batch_size=4)

    Runner(
        model=model,
        work_dir=f'{name}{rank}',
        train_dataloader=loader(),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        val_dataloader=loader(),
        val_cfg=dict(),
        val_evaluator=[Nothing()],
        custom_hooks=hooks,
        default_hooks=dict(checkpoint=None),
        experiment_name=name,
        log_level='ERROR',
    ).train()
    means = [torch.zeros(1) for _ in range(2)]
    dist.all_gather(means, torch.tensor([model.validated]))
    return [round(mean.item(), 1) for mean in means]


def run(rank):
    store = dist.FileStore('store', 2)
    dist.init_process_group('gloo', store=store, rank=rank, world_size=2)
    sync = dict(type='SyncBuffersHook')
    average = dict(type='EMAHook', momentum=0.1, update_buffers=True)
    seen = {
        'no hook': validated(rank, 'none', []),
        'SyncBuffersHook': validated(rank, 'sync', [sync]),
        'and EMAHook': validated(rank, 'both', [sync, average]),
    }
    if rank == 0:
        print(f'mmengine {__version__}: {seen}')
    assert seen == {
        'no hook': [0.7, 2.6],
        'SyncBuffersHook': [1.6, 1.6],
        'and EMAHook': [0.2, 1.3],
    }, 'the behavior has changed'
    dist.destroy_process_group()


if __name__ == '__main__':
    multiprocessing.spawn(run, (), 2)
PYTHON
venv/bin/python -W ignore ranks.py 2> log | tail -n 1
