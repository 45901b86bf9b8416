"""Random numbers of a sample depend on its position in the training alone."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS
from ranks import run_on_ranks
from runners import make_runner
from torch.utils.data import BatchSampler, Dataset, RandomSampler, default_collate

LOOPS = {
    'epochs': (dict(type='LargeBatchTrainLoop', max_epochs=3), 'DefaultSampler'),
    'iterations': (
        dict(type='LargeBatchIterTrainLoop', max_iters=8),
        'SamplerWithGenerator',
    ),
    'endless': (dict(type='LargeBatchIterTrainLoop', max_iters=8), 'InfiniteSampler'),
}


@DATA_SAMPLERS.register_module(force=True)
class SamplerWithGenerator(RandomSampler):
    """Sampler of torch with a generator of its own."""

    def __init__(self, dataset, seed, shuffle):
        assert shuffle
        super().__init__(dataset, generator=torch.Generator().manual_seed(5))


@DATA_SAMPLERS.register_module(force=True)
class ShuffledBatches(BatchSampler):
    """Batch sampler that orders its batches by a generator of its own."""

    def __init__(self, sampler, batch_size):
        super().__init__(sampler, batch_size, drop_last=False)
        self.generator = torch.Generator().manual_seed(6)

    def __iter__(self):
        batches = list(super().__iter__())
        for index in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[index]


class Albu:
    """Transform of the toolboxes whose pipeline has a generator of its own."""

    aug = SimpleNamespace(random_generator=np.random.default_rng(0))


@DATASETS.register_module(force=True)
class DrawnDataset(Dataset):
    """Data set whose samples are drawn from all global generators of the CPU."""

    loads: list = []

    def __init__(self, images):
        self.images = images
        # Some transforms know their data set.
        transforms = [SimpleNamespace(dataset=self), Albu()]
        self.pipeline = SimpleNamespace(transforms=transforms)

    def __len__(self):
        return self.images

    def __getitem__(self, index):
        self.loads.append(index)
        numbers = [random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor([float(index), *numbers, 0, 0]).double(), torch.zeros(3)


@FUNCTIONS.register_module(force=True)
def drawing_collate(samples):
    """Draw one number of each generator for the whole batch."""
    inputs, targets = default_collate(samples)
    inputs[:, 4] = random.random() + np.random.rand() + torch.rand(()).item()
    return inputs, targets


DRAWING = dict(collate_fn=dict(type='drawing_collate'))


class Recorder(Hook):
    """Hook that records what the model gets, and may stop the training."""

    def __init__(self, stop=None):
        self.stop, self.seen = stop, []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.stop:
            raise KeyboardInterrupt
        self.seen.append(torch.as_tensor(data_batch[0]).clone())


def train(folder, loop, *, workers=0, stop=None, loader=None, **kwargs):
    """Train on updates of 8 images, 20 in an epoch; return the images of each."""
    cfg, sampler = LOOPS[loop]
    if sampler == 'SamplerWithGenerator':
        loader = dict(loader or {}, batch_sampler=dict(type='ShuffledBatches'))
    recorder = Recorder(stop)
    DrawnDataset.loads = []
    runner = make_runner(
        folder,
        dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
        images=20,
        batch_size=2,
        train_cfg=dict(cfg, total_batch_size=8),
        hooks=[recorder],
        sampler=sampler,
        dataset='DrawnDataset',
        num_workers=workers,
        loader=loader,
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1),
        **kwargs,
    )
    if stop is None:
        runner.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            runner.train()
    return recorder.seen


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('loop', LOOPS)
def test_samples_do_not_depend_on_workers(tmp_path, loop):
    expected = train(tmp_path / 'none', loop, loader=DRAWING)
    images = torch.cat(expected)
    assert len(images) == len(images[:, 1:4].unique(dim=0))  # None is repeated.
    assert len(images) == 2 * len(images[:, 4].unique())
    for workers, persistent in ((1, False), (3, True)):
        folder = tmp_path / f'{workers}'
        loader = DRAWING | dict(persistent_workers=persistent)
        found = train(folder, loop, workers=workers, loader=loader)
        assert_same(found, expected)
    for name, warned in (('none', False), ('3', True)):
        (log,) = (tmp_path / name).glob('*/*.log')
        text = 'Albu: the transforms of Albumentations draw from a generator of their'
        assert (text in log.read_text()) == warned


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize('stop', [2, 3, 7])
def test_resumed_run_loads_only_what_is_left(tmp_path, loop, stop):
    expected = train(tmp_path / 'whole', loop)
    train(tmp_path / 'parts', loop, stop=stop)
    found = train(tmp_path / 'parts', loop, resume=True)
    assert_same(found, expected[stop:])
    assert len(DrawnDataset.loads) == sum(map(len, expected[stop:]))


@pytest.mark.parametrize('loop', LOOPS)
def test_resumed_run_with_persistent_workers(tmp_path, loop):
    expected = train(tmp_path / 'whole', loop, loader=DRAWING)
    options = dict(workers=2, loader=DRAWING | dict(persistent_workers=True))
    train(tmp_path / 'parts', loop, stop=4, **options)
    assert_same(train(tmp_path / 'parts', loop, resume=True, **options), expected[4:])


def on_rank(folder):
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
    options = dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=wrapper))
    return train(Path(folder, str(dist.get_rank())), 'epochs', **options)


def test_samples_are_the_same_on_every_layout(tmp_path):
    alone = train(tmp_path / 'alone', 'epochs')
    ranks = run_on_ranks(on_rank, 2, str(tmp_path))
    for own, *parts in zip(alone, *ranks, strict=True):
        together = torch.stack(parts, dim=1).flatten(0, 1)
        assert torch.equal(together, own)
