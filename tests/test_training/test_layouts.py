"""Training with one total batch size is the same on any number of ranks.

The loss of the model here is a mean over images. Heads that divide by their positives
differ between layouts: docs/layouts.md.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_on_ranks
from runners import make_runner

# (Ranks, images per rank and micro-batch): micro-batches. Each has 32 images.
LAYOUTS = {(1, 4): 8, (2, 4): 4, (4, 8): 1}
PLAIN = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
AGVM = dict(
    type='AGVMOptimWrapper',
    optimizer=PLAIN['optimizer'],
)
# 80 images: two full updates and one of 16 in an epoch.
BY_EPOCHS = dict(type='LargeBatchTrainLoop', max_epochs=4, total_batch_size=32)
BY_ITERATIONS = dict(type='LargeBatchIterTrainLoop', max_iters=10, total_batch_size=32)


def schedules(by_epoch):
    warmup = dict(type='LinearLR', start_factor=0.2)
    if by_epoch:
        # One epoch of warm-up that steps at every update.
        return [
            dict(warmup, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
            dict(type='MultiStepLR', milestones=[3], gamma=0.1, by_epoch=True),
        ]
    return [
        dict(warmup, by_epoch=False, begin=0, end=4),
        # Longer than the run, as that of a base config for a smaller batch.
        dict(type='MultiStepLR', milestones=[8], gamma=0.1, by_epoch=False, end=90),
    ]


def train_rank(folder, cases, batch_size):
    """Train each case on this rank and return its log and the parameters."""
    results = {}
    for name, (optim_wrapper, train_cfg, hooks) in cases.items():
        by_epoch = train_cfg is BY_EPOCHS or 'Iter' not in train_cfg['type']
        work_dir = Path(folder, f'{name}-{dist.get_world_size()}')
        kwargs = {}
        if dist.get_world_size() > 1:
            wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
            kwargs = dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=wrapper))
        runner = make_runner(
            work_dir,
            optim_wrapper,
            images=80,
            batch_size=batch_size,
            train_cfg=train_cfg,
            hooks=hooks,
            param_scheduler=schedules(by_epoch),
            sampler='DefaultSampler' if by_epoch else 'InfiniteSampler',
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4),
            **kwargs,
        )
        runner.train()
        model = getattr(runner.model, 'module', runner.model)
        rows = [
            json.loads(line)
            for log in work_dir.glob('*/vis_data/scalars.json')
            for line in log.read_text().splitlines()
        ]
        results[name] = dict(
            parameters={k: p.detach() for k, p in model.named_parameters()},
            lr=[row['lr'] for row in rows if 'lr' in row],
            batch_size=[row.get('batch_size') for row in rows if 'lr' in row],
            speed=[
                row['images_per_second'] for row in rows if 'images_per_second' in row
            ],
            checkpoints=sorted(p.name for p in work_dir.glob('*.pth')),
            agvm=runner.optim_wrapper.state_dict().get('agvm'),
            phi=[row['agvm/phi_neck'] for row in rows if 'agvm/phi_neck' in row],
            log=''.join(p.read_text() for p in work_dir.glob('*/*.log')),
        )
    return results


def train_everywhere(folder, cases):
    return {
        (ranks, images): run_on_ranks(train_rank, ranks, str(folder), cases, images)[0]
        for ranks, images in LAYOUTS
    }


def test_plain_sgd_is_equal_on_every_layout(tmp_path):
    cases = {'epochs': (PLAIN, BY_EPOCHS, []), 'iterations': (PLAIN, BY_ITERATIONS, [])}
    results = train_everywhere(tmp_path, cases)
    for name, updates in (('epochs', 12), ('iterations', 10)):
        first = results[1, 4][name]
        assert len(first['lr']) == updates
        assert len(set(first['lr'])) >= 4
        for (ranks, images), micro_batches in LAYOUTS.items():
            found = results[ranks, images][name]
            assert found['lr'] == first['lr']
            for key, value in first['parameters'].items():
                torch.testing.assert_close(
                    found['parameters'][key], value, rtol=0, atol=1e-9
                )
            assert f'x {micro_batches} micro-batch(es)' in found['log']
            # The first update is the first that is timed.
            assert len(found['speed']) == updates - 1
            assert found['batch_size'] == first['batch_size']
            assert min(found['speed']) > 0
            expected = [f'iter_{n}.pth' for n in range(4, updates + 1, 4)]
            if updates % 4:
                expected.append(f'iter_{updates}.pth')
            assert found['checkpoints'] == sorted(expected)
    assert results[1, 4]['epochs']['batch_size'][:3] == [32, 32, 16]
    block = results[2, 4]['epochs']['log']
    assert '32 images = 2 rank(s) x 4 images x 4 micro-batch(es)' in block
    assert '3 in an epoch, 12 in all, 0 done' in block
    counts = '3 in an epoch, 10 in all (3.3 epochs), 0 done'
    assert counts in results[2, 4]['iterations']['log']
    assert 'LinearLR from update 0 to 3' in block
    assert 'MultiStepLR from epoch 0 to 4 at 3' in block
    schedule = 'MultiStepLR from update 0 to 90 (the run ends at 10) at 8'
    assert schedule in results[2, 4]['iterations']['log']


def test_endless_sampler_is_shared_by_the_ranks(tmp_path):
    loop = dict(type='IterBasedTrainLoop', max_iters=4)
    hooks = [dict(type='VarianceSyncHook', interval=1, begin=0)]
    found = run_on_ranks(train_rank, 2, str(tmp_path), {'own': (AGVM, loop, hooks)}, 4)
    # 80 images, 8 in an update.
    assert '10 in an epoch, 4 in all (0.4 epochs), 0 done' in found[0]['own']['log']


def test_agvm_schedules_and_measurements_are_equal_on_every_layout(tmp_path):
    cases = {
        estimator: (
            AGVM,
            dict(BY_EPOCHS, max_epochs=12),
            [dict(type='VarianceSyncHook', interval=1, begin=4, estimator=estimator)],
        )
        for estimator in ('halves', 'replicas')
    }
    results = train_everywhere(tmp_path, cases)
    for estimator in cases:
        first = results[1, 4][estimator]
        means = []
        for (ranks, images), micro_batches in LAYOUTS.items():
            found = results[ranks, images][estimator]
            assert found['lr'] == first['lr']
            assert found['agvm']['num_measurements'] == 32
            # Only full batches: short ones have a larger variance.
            full = [phi for i, phi in enumerate(found['phi'], 4) if i % 3 != 2]
            means.append(sum(full) / len(full))
            assert f'x {micro_batches} micro-batch' in found['log']
        # The layouts split the same batches differently: means of 21 measurements, each
        # accurate to about 0.25.
        assert max(means) - min(means) < 0.25, means
        assert 0.05 < min(means)
    log = results[2, 4]['halves']['log']
    assert 'AGVM      from update 4, measured every 1 by halves' in log
    assert 'module    mask_head: 18 parameters' in log


def test_resume_on_another_layout_keeps_batch_and_multipliers(tmp_path):
    hooks = [dict(type='VarianceSyncHook', interval=1)]
    run_on_ranks(resume_rank, 1, str(tmp_path), 2, 4, hooks)
    (before,) = run_on_ranks(saved_rank, 1, str(tmp_path))
    results = run_on_ranks(resume_rank, 2, str(tmp_path), 3, 4, hooks)
    for resumed, after in results:
        assert resumed == before
        assert after['num_updates'] == 9


def saved_rank(folder):
    """Return AGVM's state in the newest checkpoint."""
    from agvm_mm.training.loading import allow_runner_checkpoints

    allow_runner_checkpoints()
    path = Path(folder, 'last_checkpoint').read_text()
    return torch.load(path)['optimizer']['agvm']


def resume_rank(folder, epochs, images, hooks):
    """Train or resume; return AGVM's state before and after the training."""
    kwargs = {}
    if dist.get_world_size() > 1:
        wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
        kwargs = dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=wrapper))
    runner = make_runner(
        Path(folder),
        AGVM,
        images=80,
        batch_size=images,
        train_cfg=dict(BY_EPOCHS, max_epochs=epochs),
        hooks=hooks,
        checkpoint=dict(type='CheckpointHook', interval=1),
        resume=True,
        **kwargs,
    )
    seen = []
    run = runner.call_hook

    def spy(name, **kwargs):
        if name == 'before_train':
            seen.append(runner.optim_wrapper.state_dict()['agvm'])
        run(name, **kwargs)

    runner.call_hook = spy
    runner.train()
    return seen[0], runner.optim_wrapper.state_dict()['agvm']


def one_run(work_dir, **changes):
    """Build a Runner in one process, with some settings changed."""
    settings = dict(
        optim_wrapper=AGVM,
        images=32,
        batch_size=4,
        train_cfg=dict(BY_EPOCHS, max_epochs=1, total_batch_size=16),
        hooks=[dict(type='VarianceSyncHook', interval=1)],
        checkpoint=dict(type='CheckpointHook', interval=1),
    )
    settings.update(changes)
    return make_runner(work_dir, settings.pop('optim_wrapper'), **settings)


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(train_cfg=dict(BY_EPOCHS, max_epochs=2, total_batch_size=8)),
            'images of an update: 16 in the checkpoint, 8 in this run',
        ),
        (
            dict(optim_wrapper=dict(AGVM, anchor='neck')),
            'anchor: backbone in the checkpoint, neck in this run',
        ),
        (
            dict(
                optim_wrapper=dict(
                    AGVM, modules=dict(backbone=['backbone'], rest=['neck', 'roi_head'])
                )
            ),
            "modules: .*'mask_head'] in the checkpoint, .*'rest'] in this run",
        ),
        (
            dict(optim_wrapper=dict(AGVM, optimizer=dict(type='AdamW', lr=0.05))),
            'optimizer: SGD in the checkpoint, AdamW in this run',
        ),
        (
            dict(optim_wrapper=dict(AGVM, optimizer=dict(PLAIN['optimizer'], lr=0.5))),
            r'learning rates: \[0.05\] in the checkpoint, \[0.5\] in this run',
        ),
    ],
)
def test_resume_of_another_training_stops_unless_allowed(tmp_path, changes, message):
    one_run(tmp_path).train()
    with pytest.raises(ValueError, match=message):
        one_run(tmp_path, resume=True, **changes).train()
    changes = dict(changes)
    changes['hooks'] = [
        dict(type='VarianceSyncHook', interval=1, allow_resume_mismatch=True)
    ]
    changes.setdefault('train_cfg', dict(BY_EPOCHS, max_epochs=2, total_batch_size=16))
    runner = one_run(tmp_path, resume=True, **changes)
    runner.train()
    assert runner.epoch == 2
    logs = ''.join(p.read_text() for p in tmp_path.glob('*/*.log'))
    assert 'resuming a checkpoint of another training' in logs


def test_resume_with_another_opencv_says_so(tmp_path, monkeypatch):
    warning = 'resuming a checkpoint of other versions (OpenCV 4.11.0 then, 5.0.1 now)'
    monkeypatch.setattr('cv2.__version__', '4.11.0')
    one_run(tmp_path).train()
    settings = dict(BY_EPOCHS, total_batch_size=16)
    one_run(tmp_path, resume=True, train_cfg=dict(settings, max_epochs=2)).train()
    # Runs of the same second share a log.
    before = ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    assert f'versions  torch {torch.__version__}, numpy' in before
    assert 'OpenCV 4.11.0' in before and 'of other versions' not in before
    monkeypatch.setattr('cv2.__version__', '5.0.1')
    one_run(tmp_path, resume=True, train_cfg=dict(settings, max_epochs=3)).train()
    logs = ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    assert logs.count(warning) == 1


def test_learning_rate_of_another_batch_is_in_the_summary(tmp_path):
    scaling = dict(enable=False, base_batch_size=4)
    for name, train_cfg, auto_scale_lr in [
        ('epochs', dict(BY_EPOCHS, max_epochs=1, total_batch_size=16), scaling),
        ('iterations', dict(BY_ITERATIONS, max_iters=8, total_batch_size=16), scaling),
        ('fits', dict(BY_EPOCHS, max_epochs=1), dict(base_batch_size=32)),
    ]:
        changes = dict(train_cfg=train_cfg, auto_scale_lr=auto_scale_lr)
        changes['checkpoint'] = dict(type='CheckpointHook', interval=-1)
        one_run(tmp_path / name, **changes).train()
    logs = {path.parts[-3]: path.read_text() for path in tmp_path.glob('*/*/*.log')}
    for name in ('epochs', 'iterations'):
        assert (
            'lr=0.05 is that of batch 4. For 16 the linear rule gives 0.2' in logs[name]
        )
    assert 'and max_iters=2 as many images as 8.' in logs['iterations']
    assert 'max_iters' not in logs['epochs'].split('Large-batch training')[1]
    assert 'is that of batch' not in logs['fits']
