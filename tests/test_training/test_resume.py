"""A killed and resumed run equals an uninterrupted one to the last bit."""

import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, MODELS
from ranks import run_on_ranks
from runners import ImageDataset, make_runner
from toy import ToyDetector

from agvm_mm.training.loading import allow_runner_checkpoints

MODULES = ['backbone', 'neck', 'bbox_head', 'mask_head']


@MODELS.register_module(force=True)
class NoisyDetector(ToyDetector):
    """Detector with dropout: a forward pass draws random numbers."""

    def forward(self, inputs, data_samples=None, mode='loss'):
        inputs = torch.nn.functional.dropout(inputs, 0.2, self.training)
        return super().forward(inputs, data_samples, mode)


@DATASETS.register_module(force=True)
class AugmentedDataset(ImageDataset):
    """Data set with random augmentation, as in image pipelines."""

    def __getitem__(self, index):
        inputs, targets = super().__getitem__(index)
        scale = 1 + 0.1 * np.random.rand() + 0.1 * random.random()
        return inputs * scale, targets


@HOOKS.register_module(force=True)
class DieHook(Hook):
    """Hook that sends SIGKILL after an update whose checkpoint is written."""

    priority = 'LOWEST'

    def __init__(self, after: int):
        self.after = after

    def _die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after:
            if dist.is_initialized():
                dist.barrier()  # Rank 0 has written its checkpoint.
            self._die()


@HOOKS.register_module(force=True)
class DieAfterEpochHook(DieHook):
    """Hook that sends SIGKILL at the end of an epoch."""

    def after_train_iter(self, *args, **kwargs):
        """Do nothing."""

    def after_train_epoch(self, runner):
        if runner.epoch + 1 == self.after:
            if dist.is_initialized():
                dist.barrier()
            self._die()


UPDATES = 9
CASES = {
    # Three updates of 16 images in an epoch, the last one of 8.
    'mid-epoch': (
        dict(type='LargeBatchTrainLoop', max_epochs=3, total_batch_size=16),
        dict(by_epoch=False, interval=1),
        dict(type='DieHook', after=4),
        dict(),
    ),
    'epoch-end': (
        dict(type='LargeBatchTrainLoop', max_epochs=3, total_batch_size=16),
        dict(by_epoch=True, interval=1),
        dict(type='DieAfterEpochHook', after=1),
        dict(),
    ),
    'workers': (
        dict(type='LargeBatchTrainLoop', max_epochs=3, total_batch_size=16),
        dict(by_epoch=False, interval=1),
        dict(type='DieHook', after=5),
        dict(num_workers=1),
    ),
    'iterations': (
        dict(type='LargeBatchIterTrainLoop', max_iters=UPDATES, total_batch_size=16),
        dict(by_epoch=False, interval=1),
        dict(type='DieHook', after=4),
        dict(sampler='InfiniteSampler'),
    ),
    'adamw, no seed': (
        dict(type='LargeBatchTrainLoop', max_epochs=3, total_batch_size=16),
        dict(by_epoch=False, interval=1),
        dict(type='DieHook', after=4),
        dict(optimizer=dict(type='AdamW', lr=0.01), randomness=dict(seed=None)),
    ),
}


def build(work_dir, case, *, die=False, resume=False, **changes):
    train_cfg, checkpoint, die_hook, options = CASES[case]
    options = dict(options)
    optimizer = options.pop('optimizer', dict(type='SGD', lr=0.05, momentum=0.9))
    by_epoch = 'Iter' not in train_cfg['type']
    scheduler = dict(type='MultiStepLR', gamma=0.1, by_epoch=by_epoch)
    scheduler['milestones'] = [2] if by_epoch else [6]
    arguments = dict(
        images=40,
        batch_size=4,
        train_cfg=train_cfg,
        checkpoint=dict(type='AtomicCheckpointHook', max_keep_ckpts=1, **checkpoint),
        hooks=[
            dict(type='VarianceSyncHook', interval=2, begin=2),
            dict(type='EMAHook', momentum=0.1),
            *([die_hook] if die else []),
        ],
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5),
            scheduler,
        ],
        resume=resume,
        optim_wrapper=dict(
            type='AGVMOptimWrapper',
            optimizer=optimizer,
            momentum=0.5,
        ),
        model='NoisyDetector',
        dataset='AugmentedDataset',
    )
    arguments.update(options)
    arguments.update(changes)
    return make_runner(Path(work_dir), **arguments)


def train(work_dir, case, **kwargs):
    build(work_dir, case, **kwargs).train()


def read(work_dir):
    """Return the newest checkpoint of a run and its logged learning rates."""
    allow_runner_checkpoints()
    path = Path((work_dir / 'last_checkpoint').read_text())
    checkpoint = torch.load(path)
    rows = [
        json.loads(line)
        for log in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in log.read_text().splitlines()
    ]
    return checkpoint, {row['step']: row['lr'] for row in rows if 'lr' in row}


def assert_same(one, other, path='checkpoint'):
    """Assert that nested containers of tensors and numbers are bit-identical."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f'{path}.{key}')
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f'{path}[{index}]')
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other, path


@pytest.mark.parametrize('ranks', [1, 2])
@pytest.mark.parametrize('case', CASES)
def test_killed_and_resumed_run_is_bit_identical(tmp_path, case, ranks):
    # Without a seed a run takes a random one: here both runs get the same seed, and the
    # resumed run gets none.
    seed = dict(randomness=dict(seed=7)) if 'seed' in case else {}
    through, broken = tmp_path / 'through', tmp_path / 'broken'
    run_on_ranks(resume_rank, ranks, str(through), case, seed)
    died = run_on_ranks(
        resume_rank, ranks, str(broken), case, dict(die=True, **seed), check=False
    )
    assert died == [-signal.SIGKILL] * ranks
    run_on_ranks(resume_rank, ranks, str(broken), case, dict(resume=True))

    expected, expected_lr = read(through)
    found, found_lr = read(broken)
    assert expected['meta']['iter'] == found['meta']['iter'] == UPDATES
    for part in ('state_dict', 'optimizer', 'param_schedulers', 'ema_state_dict'):
        assert_same(expected[part], found[part], part)
    multipliers = found['optimizer']['agvm']['multipliers']
    assert min(abs(multipliers[m] - 1) for m in MODULES[1:]) > 1e-5
    assert list(found_lr) == list(range(1, UPDATES + 1))
    assert found_lr == expected_lr


def resume_rank(work_dir, case, options):
    """Train on this rank; without DDP and process group if it is the only rank."""
    alone = dist.get_world_size() == 1
    if alone:
        dist.destroy_process_group()
    extra = {}
    if not alone:
        extra = dict(
            launcher='pytorch',
            cfg=dict(
                model_wrapper_cfg=dict(
                    type='MMDistributedDataParallel', device_ids=None
                )
            ),
        )
    train(work_dir, case, **options, **extra)
    if alone:
        dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
