"""Updates are planned on what the batch sampler of the run's DataLoader yields."""

import copy
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, LOOPS, MODELS, TRANSFORMS
from mmengine.runner import EpochBasedTrainLoop, FlexibleRunner, Runner
from runners import ImageDataset, make_runner
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
)

from agvm_mm.training.dataloader import (
    UpdateDataLoader,
    build_update_dataloader,
    has_uneven_ranks,
)
from agvm_mm.training.loops import LargeBatchTrainLoop

PLAIN = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05))
AGVM = dict(PLAIN, type='AGVMOptimWrapper')


NO_CHECKPOINT = dict(checkpoint=dict(type='CheckpointHook', interval=-1))


@MODELS.register_module(force=True)
class SeenModel(BaseModel):
    """Model that records its batches."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(1, 1)
        self.head = nn.Linear(1, 1)
        self.seen = []

    def forward(self, inputs, data_samples=None, mode='loss'):
        inputs = torch.as_tensor(inputs).flatten()
        self.seen.append(inputs.tolist())
        return dict(loss=self.head(self.backbone(inputs[:, None].float())).mean())


@TRANSFORMS.register_module(force=True)
class AddHundred:
    def __call__(self, results):
        return dict(inputs=results['inputs'] + 100)


@DATASETS.register_module(force=True)
class NumberDataset(Dataset):
    """Numbers from 0 on, as a pipeline returns them."""

    metainfo = {}

    def __init__(self, images, first=0):
        self.images, self.first = images, first
        self.pipeline = dict

    def __len__(self):
        return self.images

    def __getitem__(self, index):
        return self.pipeline(dict(inputs=self.first + index))

    def get_data_info(self, index):
        return dict(width=1 + index % 3, height=2)


def train(work_dir, train_cfg, dataloader, *, optim_wrapper=PLAIN, **kwargs):
    """Train a SeenModel and return the runner."""
    runner = Runner(
        model=dict(type='SeenModel'),
        work_dir=str(work_dir),
        train_dataloader=dict(collate_fn=dict(type='default_collate')) | dataloader,
        optim_wrapper=optim_wrapper,
        train_cfg=train_cfg,
        randomness=dict(seed=0),
        experiment_name=f'{work_dir.name}-{uuid.uuid4().hex}',
        **dict(default_hooks=NO_CHECKPOINT) | kwargs,
    )
    runner.train()
    return runner


def numbers(images, batch_size, **kwargs):
    return (
        dict(
            dataset=dict(type='NumberDataset', images=images),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=batch_size,
            num_workers=0,
        )
        | kwargs
    )


@pytest.mark.parametrize('persistent', [True, False])
def test_pipeline_switch_reaches_the_workers_as_in_mmengine(tmp_path, persistent):
    from mmdet.engine.hooks import PipelineSwitchHook

    loader = numbers(8, 4, num_workers=2, persistent_workers=persistent)
    seen = []
    for name, cfg in (
        ('theirs', dict(type='EpochBasedTrainLoop', max_epochs=4)),
        ('ours', dict(type='LargeBatchTrainLoop', max_epochs=4, total_batch_size=4)),
    ):
        hook = dict(
            type=PipelineSwitchHook,
            switch_epoch=2,
            switch_pipeline=[dict(type='AddHundred')],
        )
        runner = train(tmp_path / name, cfg, copy.deepcopy(loader), custom_hooks=[hook])
        seen.append(runner.model.seen)
    assert seen[0] == seen[1]
    assert [value >= 100 for batch in seen[1] for value in batch] == [
        *[False] * 16,
        *[True] * 16,
    ]


def sources():
    return ConcatDataset([NumberDataset(7), NumberDataset(16, first=1000)])


def multi_source(batch_size):
    from mmdet.datasets.samplers import MultiSourceSampler

    return dict(
        dataset=sources(),
        sampler=dict(
            type=MultiSourceSampler, batch_size=batch_size, source_ratio=[1, 4]
        ),
        batch_size=batch_size,
        num_workers=0,
    )


def test_endless_sampler_of_several_sources_gives_full_updates(tmp_path):
    cfg = dict(type='IterBasedTrainLoop', max_iters=14)
    theirs = train(tmp_path / 'theirs', cfg, multi_source(5))
    cfg = dict(type='LargeBatchIterTrainLoop', max_iters=7, total_batch_size=10)
    ours = train(tmp_path / 'ours', cfg, multi_source(5))
    assert ours.model.seen == theirs.model.seen
    assert ours.message_hub.get_scalar('train/batch_size').data[0].tolist() == [10] * 7


def test_endless_sampler_in_the_epoch_loop_names_the_other_loop(tmp_path):
    cfg = dict(type='LargeBatchTrainLoop', max_epochs=1, total_batch_size=10)
    with pytest.raises(ValueError, match='MultiSourceSampler never.*LargeBatchIterT'):
        train(tmp_path, cfg, multi_source(5))
    with pytest.raises(ValueError, match='InfiniteSampler never.*LargeBatchIterTrain'):
        train(tmp_path, cfg, numbers(20, 5, sampler=dict(type='InfiniteSampler')))


class UnknownEndlessSampler(DefaultSampler):
    def __iter__(self):
        while True:
            yield from super().__iter__()


def test_endless_sampler_of_unknown_kind_is_found(tmp_path):
    cfg = dict(type='LargeBatchTrainLoop', max_epochs=1, total_batch_size=10)
    loader = numbers(20, 5, sampler=UnknownEndlessSampler(NumberDataset(20)))
    with pytest.raises(ValueError, match='UnknownEndlessSampler never ends'):
        train(tmp_path, cfg, loader)


def test_batch_sampler_may_yield_fewer_batches_than_its_length(tmp_path):
    from mmdet.datasets.samplers import AspectRatioBatchSampler

    loader = numbers(
        20, 4, batch_sampler=dict(type=AspectRatioBatchSampler, drop_last=True)
    )
    seen = []
    for name, cfg in (
        ('theirs', dict(type='EpochBasedTrainLoop', max_epochs=2)),
        ('ours', dict(type='LargeBatchTrainLoop', max_epochs=2, total_batch_size=8)),
    ):
        runner = train(tmp_path / name, cfg, copy.deepcopy(loader))
        seen.append(runner.model.seen)
    # Groups of 14 and 6 images: 3 + 1 batches of 4, of 5 that the length gives.
    assert len(seen[0]) == 8
    assert seen[0] == seen[1]
    assert runner.iter == 4


class TwoSizes(BatchSampler):
    """Batch sampler with a batch size for each source, as MMDetection has them."""

    def __init__(self, sampler, batch_size):
        self.sampler, self.batch_size = sampler, batch_size

    def __iter__(self):
        yield from ([0, 1, 2, 3], [4, 5])

    def __len__(self):
        return 2


class TwoInARow(BatchSampler):
    """Batch sampler of a project."""

    def __init__(self, sampler, batch_size):
        super().__init__(sampler, batch_size, drop_last=False)


@pytest.mark.parametrize(
    'train_cfg, optim_wrapper, hooks',
    [
        (
            dict(type='LargeBatchTrainLoop', max_epochs=1, total_batch_size=4),
            PLAIN,
            [],
        ),
        (
            dict(type='EpochBasedTrainLoop', max_epochs=1),
            dict(AGVM, accumulative_counts=2),
            [dict(type='VarianceSyncHook')],
        ),
    ],
)
def test_several_batch_sizes_are_refused(tmp_path, train_cfg, optim_wrapper, hooks):
    loader = numbers(8, [4, 2], batch_sampler=dict(type=TwoSizes))
    with pytest.raises(ValueError, match=r'TwoSizes has several batch sizes, \[4, 2\]'):
        train(
            tmp_path,
            train_cfg,
            loader,
            optim_wrapper=optim_wrapper,
            custom_hooks=hooks,
        )


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(8))


def test_data_without_a_planned_order_is_refused():
    with pytest.raises(TypeError, match='that of Stream has none'):
        UpdateDataLoader(DataLoader(Stream(), batch_size=None), 8, 0)
    loader = DataLoader(NumberDataset(8), batch_size=2)
    loader.in_order = False  # An argument from torch 2.6 on.
    with pytest.raises(ValueError, match=r'train_dataloader\.in_order=False takes'):
        UpdateDataLoader(loader, 4, 0)


@pytest.mark.parametrize('total', [128, 1024])
def test_total_larger_than_the_data_is_refused(tmp_path, total):
    cfg = dict(type='LargeBatchTrainLoop', max_epochs=1, total_batch_size=total)
    with pytest.raises(
        ValueError, match=f'total_batch_size={total}, .* only 64 images'
    ):
        train(tmp_path, cfg, numbers(64, 4))


def test_epoch_loop_with_max_iters_names_the_other_loop():
    with pytest.raises(TypeError, match="'max_iters'.*LargeBatchIterTrainLoop"):
        LargeBatchTrainLoop(None, None, total_batch_size=8, max_iters=10)


@LOOPS.register_module(force=True)
class OwnRunLoop(LargeBatchTrainLoop):
    """Loop that copies ``run`` of MMEngine."""

    def run(self):
        return EpochBasedTrainLoop.run(self)


@pytest.mark.parametrize('optim_wrapper', [PLAIN, AGVM], ids=['plain', 'agvm'])
def test_subclass_with_its_own_run_is_checked_as_well(tmp_path, optim_wrapper):
    cfg = dict(type='OwnRunLoop', max_epochs=2, total_batch_size=8)
    hooks = [dict(type='VarianceSyncHook')] if optim_wrapper is AGVM else []
    runner = train(
        tmp_path,
        cfg,
        numbers(16, 4),
        optim_wrapper=optim_wrapper,
        custom_hooks=hooks,
    )
    assert runner.iter == 4
    with pytest.raises(ValueError, match='remove optim_wrapper.accumulative_counts=2'):
        train(
            tmp_path / 'twice',
            cfg,
            numbers(16, 4),
            optim_wrapper=dict(optim_wrapper, accumulative_counts=2),
            custom_hooks=hooks,
        )


def start_worker(worker):
    """Do nothing."""


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(
            num_workers=2,
            prefetch_factor=3,
            persistent_workers=True,
            multiprocessing_context='spawn',
            timeout=7,
        ),
        dict(
            collate_fn=list,
            pin_memory=True,
            worker_init_fn=start_worker,
            generator=torch.Generator(),
        ),
    ],
    ids=['defaults', 'workers', 'functions'],
)
def test_loader_has_every_setting_of_the_original(settings):
    original = DataLoader(NumberDataset(12), batch_size=2, **settings)
    loader = UpdateDataLoader(original, 4, 0)
    assert isinstance(loader, DataLoader)
    public = {name for name in dir(original) if not name.startswith('_')}
    values = {name for name in public if not callable(getattr(DataLoader, name, None))}
    # torch has these only where it builds the batch sampler.
    values -= {'batch_size', 'sampler', 'batch_sampler', 'drop_last'}
    assert set(settings) < values
    for name in values:
        assert getattr(loader, name) is getattr(original, name), name
    plan = loader.batch_sampler
    assert plan is loader.plan and plan.batch_sampler is original.batch_sampler
    assert plan.sampler is original.sampler and plan.batch_size == 2
    assert len(plan) == 6 and len(loader) == 3


class Prefetcher(DataLoader):
    """DataLoader of a project that holds the next batch and changes each."""

    def __init__(self, *args, offset, **kwargs):
        super().__init__(*args, **kwargs)
        self.offset = offset

    def __iter__(self):
        held = None
        for batch in super().__iter__():
            if held is not None:
                yield held
            held = dict(inputs=batch['inputs'] + self.offset)
        yield held


def with_class(kind, plain, **kwargs):
    return kind(
        plain.dataset,
        batch_sampler=plain.batch_sampler,
        num_workers=plain.num_workers,
        collate_fn=plain.collate_fn,
        **kwargs,
    )


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('loop', ['Epoch', 'Iter'])
def test_class_of_a_project_keeps_its_methods(tmp_path, monkeypatch, loop, workers):
    loader = numbers(10, 2, num_workers=workers)
    loader['sampler']['shuffle'] = True
    length = dict(max_epochs=2) if loop == 'Epoch' else dict(max_iters=6)
    kind = dict(Epoch='LargeBatchTrainLoop', Iter='LargeBatchIterTrainLoop')[loop]
    cfg = dict(type=kind, total_batch_size=4, **length)
    plain = train(tmp_path / 'plain', cfg, copy.deepcopy(loader)).model.seen
    build = Runner.build_dataloader
    monkeypatch.setattr(
        Runner,
        'build_dataloader',
        staticmethod(
            lambda *args, **kwargs: with_class(
                Prefetcher, build(*args, **kwargs), offset=1000
            )
        ),
    )
    runner = train(tmp_path / 'own', cfg, copy.deepcopy(loader))
    assert isinstance(runner.train_dataloader, Prefetcher)
    expected = [[value + 1000 for value in batch] for batch in plain]
    assert runner.model.seen == expected


def test_class_that_does_not_keep_its_arguments_is_refused():
    class Forgetful(DataLoader):
        def __init__(self, dataset, stream, **kwargs):
            super().__init__(dataset, **kwargs)

    loader = Forgetful(NumberDataset(8), 'stream', batch_size=2)
    with pytest.raises(TypeError, match='builds a Forgetful .* its argument stream'):
        build_update_dataloader(loader, 4, 0)


class Short(DataLoader):
    def __iter__(self):
        return islice(super().__iter__(), len(self))


class Long(DataLoader):
    def __iter__(self):
        for batch in super().__iter__():
            yield batch
            yield batch


class Threaded(DataLoader):
    def __iter__(self):
        iterator = super().__iter__()
        with ThreadPoolExecutor(1) as pool:
            for _ in range(len(self.batch_sampler)):
                yield pool.submit(next, iterator).result()


class DrawsAhead(DataLoader):
    """As loaders that keep their workers over the epochs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.first = list(self.batch_sampler)


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        (Short, 'ended 1 micro-batches before the end of an update'),
        (Long, 'goes on after its batch sampler has ended'),
        (Threaded, 'draws batches in a thread of its own'),
        (DrawsAhead, 'draws batches before an epoch begins'),
    ],
)
def test_class_that_yields_other_batches_is_refused(kind, message):
    loader = kind(NumberDataset(12), batch_size=2)
    with pytest.raises(RuntimeError, match=message):
        for window in build_update_dataloader(loader, 4, 0):
            list(window.micro_batches())


@pytest.mark.parametrize('options', [{}, dict(batch_sampler=dict(type=TwoInARow))])
def test_sampler_learns_the_epoch_from_mmengine(tmp_path, options):
    sampler = dict(type='DefaultSampler', shuffle=True)
    cfg = dict(type='LargeBatchTrainLoop', max_epochs=3, total_batch_size=4)
    runner = train(tmp_path, cfg, numbers(8, 2, sampler=sampler, **options))
    assert runner.train_dataloader.plan.sampler.epoch == 2
    seen = [value for batch in runner.model.seen for value in batch]
    epochs = [seen[:8], seen[8:16], seen[16:]]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_collate_function_set_by_a_hook_reaches_the_loader():
    loader = UpdateDataLoader(DataLoader(ImageDataset(8), batch_size=2), 4, 0)
    loader.collate_fn = len
    assert [list(one.micro_batches()) for one in loader] == [[2, 2], [2, 2]]


@pytest.mark.parametrize('optim_wrapper', [PLAIN, AGVM], ids=['plain', 'agvm'])
def test_flexible_runner(tmp_path, optim_wrapper):
    cfg = dict(
        model=dict(type='ToyDetector'),
        train_dataloader=dict(
            dataset=dict(type='ImageDataset', images=24),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=4,
            num_workers=0,
            collate_fn=dict(type='default_collate'),
        ),
        optim_wrapper=optim_wrapper,
        train_cfg=dict(type='LargeBatchTrainLoop', max_epochs=2, total_batch_size=12),
        randomness=dict(seed=0),
        custom_hooks=[dict(type='VarianceSyncHook')] if optim_wrapper is AGVM else [],
    )
    flexible = FlexibleRunner(
        work_dir=str(tmp_path / 'flexible'),
        experiment_name=f'flexible-{uuid.uuid4().hex}',
        **copy.deepcopy(cfg),
    )
    flexible.train()
    runner = make_runner(
        tmp_path / 'plain',
        optim_wrapper,
        images=24,
        batch_size=4,
        train_cfg=cfg['train_cfg'],
        hooks=cfg['custom_hooks'],
        shuffle=False,
    )
    runner.train()
    assert flexible.iter == runner.iter == 4
    for p, q in zip(
        flexible.model.parameters(), runner.model.parameters(), strict=True
    ):
        assert torch.equal(p, q)


@TRANSFORMS.register_module(force=True)
class AddNoise:
    def __call__(self, results):
        return dict(inputs=results['inputs'] + torch.rand(()).item())


def test_new_workers_draw_other_augmentations_in_each_epoch(tmp_path):
    def make(folder, **kwargs):
        dataset = NumberDataset(8)
        dataset.pipeline = AddNoise()
        return train(
            folder,
            dict(type='LargeBatchTrainLoop', max_epochs=3, total_batch_size=8),
            numbers(8, 4, dataset=dataset, num_workers=2),
            **kwargs,
        )

    checkpoint = dict(type='CheckpointHook', interval=1)
    seen = make(tmp_path, default_hooks=dict(checkpoint=checkpoint)).model.seen
    assert len({value for batch in seen for value in batch}) == 24
    resumed = make(tmp_path, load_from=str(tmp_path / 'epoch_1.pth'), resume=True)
    assert resumed.model.seen == seen[2:]


class GroupingBatchSampler(BatchSampler):
    """Batch sampler that may leave out more than the last images."""


@pytest.mark.parametrize('ranks', [1, 2])
@pytest.mark.parametrize('kind', [BatchSampler, GroupingBatchSampler])
def test_batches_that_only_one_rank_may_leave_out(monkeypatch, ranks, kind):
    for drop_last in (False, True):
        loader = DataLoader(
            ImageDataset(8), batch_sampler=kind(range(8), 2, drop_last=drop_last)
        )
        updates = UpdateDataLoader(loader, 4, 0)
        with monkeypatch.context() as patched:
            name = 'agvm_mm.training.dataloader.get_world_size'
            patched.setattr(name, lambda: ranks)
            if ranks == 2 and kind is GroupingBatchSampler and drop_last:
                with pytest.raises(ValueError, match='with drop_last=True may drop'):
                    has_uneven_ranks(updates)
            else:
                assert not has_uneven_ranks(updates)
