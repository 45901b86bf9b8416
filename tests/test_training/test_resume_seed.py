"""A resume without a fixed seed has the seed of its checkpoint, everywhere."""

import copy
import random

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from runners import ImageDataset, make_runner
from test_resume import assert_same

from agvm_mm.training.loading import allow_runner_checkpoints


@pytest.fixture(autouse=True)
def samplers_of_mmdetection():
    import mmdet.datasets  # noqa: F401


@DATASETS.register_module(force=True)
class OpenFileDataset(ImageDataset):
    """Data set with an open file, random augmentation and what samplers ask for."""

    built = 0

    def __init__(self, images: int) -> None:
        super().__init__(images)
        type(self).built += 1
        self.file = open(__file__)  # noqa: SIM115
        self.metainfo = dict(classes=('a', 'b', 'c'))

    def __getitem__(self, index):
        assert self.file.readable()
        inputs, targets = super().__getitem__(index)
        scale = 1 + 0.1 * np.random.rand() + 0.1 * random.random()
        return inputs * (scale + 0.1 * torch.rand(1).item()), targets

    def get_cat_ids(self, index):
        return [index % 3]

    def get_data_info(self, index):
        return dict(width=2 + index % 2, height=2.5)


EPOCHS = dict(type='LargeBatchTrainLoop', max_epochs=3, total_batch_size=8)
UPDATES = dict(type='LargeBatchIterTrainLoop', max_iters=12, total_batch_size=8)
SHUFFLED = dict(sampler=dict(type='DefaultSampler', shuffle=True))
ENDLESS = dict(sampler=dict(type='InfiniteSampler', shuffle=True))
BY_ASPECT = dict(batch_sampler=dict(type='mmdet.AspectRatioBatchSampler'))
BY_CLASS = dict(sampler=dict(type='mmdet.ClassAwareSampler'))
OWN_SEED = dict(sampler=dict(type='DefaultSampler', shuffle=True, seed=3))
CASES = {
    'DefaultSampler': (EPOCHS, SHUFFLED),
    'DefaultSampler with a seed': (EPOCHS, OWN_SEED),
    'DefaultSampler, iterations': (UPDATES, SHUFFLED),
    'InfiniteSampler': (UPDATES, ENDLESS),
    'AspectRatioBatchSampler': (EPOCHS, SHUFFLED | BY_ASPECT),
    'AspectRatioBatchSampler, iterations': (UPDATES, ENDLESS | BY_ASPECT),
    'ClassAwareSampler': (EPOCHS, BY_CLASS),
    'ClassAwareSampler, iterations': (UPDATES, BY_CLASS),
    'ClassAwareSampler, AspectRatioBatchSampler': (EPOCHS, BY_CLASS | BY_ASPECT),
}


def run(work_dir, case, *, seed, **options):
    options = dict(options)
    loader = options.pop('loader', {})
    randomness = dict(seed=seed) | options.pop('randomness', {})
    train_cfg, sampler = CASES[case]
    work_dir.mkdir(exist_ok=True)
    runner = make_runner(
        work_dir,
        dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        images=32,
        batch_size=4,
        train_cfg=dict(train_cfg),
        checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False),
        dataset='OpenFileDataset',
        randomness=randomness,
        loader=copy.deepcopy(sampler) | loader,
        **options,
    )
    runner.train()
    return runner


OPTIONS = {
    'process': {},
    'workers': dict(num_workers=2),
    'num_batch_per_epoch': dict(loader=dict(num_batch_per_epoch=5)),
    'seed of each rank': dict(randomness=dict(diff_rank_seed=True)),
}
CHECKED = [(case, 'process', done) for case in CASES for done in (3, 5)]
KINDS = (
    'DefaultSampler',
    'InfiniteSampler',
    'ClassAwareSampler',
    'AspectRatioBatchSampler',
)
CHECKED += [(case, 'num_batch_per_epoch', 5) for case in KINDS]
CHECKED += [(case, 'seed of each rank', 5) for case in KINDS]
CHECKED += [('DefaultSampler', 'workers', 5), ('InfiniteSampler', 'workers', 5)]


@pytest.mark.parametrize(('case', 'options', 'done'), CHECKED)
def test_resumed_run_is_bit_identical(tmp_path, case, options, done):
    through = run(tmp_path / 'through', case, seed=7, **OPTIONS[options])
    last = through.iter
    OpenFileDataset.built = 0
    again = run(
        tmp_path / 'again',
        case,
        seed=None,
        resume=True,
        load_from=str(tmp_path / f'through/iter_{done}.pth'),
        **OPTIONS[options],
    )
    assert again.iter == last and again.seed == 7
    assert OpenFileDataset.built == 1
    allow_runner_checkpoints()
    expected, found = (
        torch.load(tmp_path / name / f'iter_{last}.pth')
        for name in ('through', 'again')
    )
    for part in ('state_dict', 'optimizer'):
        assert_same(expected[part], found[part], part)


@pytest.mark.parametrize('case', KINDS)
def test_seed_matters(tmp_path, case):
    first, second = (
        run(tmp_path / str(seed), case, seed=seed).model.state_dict() for seed in (7, 8)
    )
    assert not torch.equal(first['neck.weight'], second['neck.weight'])
