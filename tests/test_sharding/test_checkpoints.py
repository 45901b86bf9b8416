"""Checkpoints of trainings that are divided over the ranks: one format."""

import os
import signal

import pytest
import torch
import torch.distributed as dist
from engines import DIVIDED, ENGINES, UNITS, as_zero, build, needs_fsdp
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from ranks import run_on_ranks
from runners import make_runner
from toy import ToyDetector

from agvm_mm.training.loading import allow_runner_checkpoints
from gpu_check.engines import whole
from gpu_check.parity import shard

SGD = dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=0.01)
ADAMW = dict(type='AdamW', lr=0.01, amsgrad=True, weight_decay=0.01)
UPDATES, SAVED = 6, 3
ATOMIC = 'AtomicCheckpointHook'


@HOOKS.register_module(force=True)
class KillHook(Hook):
    """Hook that sends SIGKILL after an update whose checkpoint is written."""

    priority = 'LOWEST'

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == SAVED:
            dist.barrier()  # Rank 0 has written its checkpoint.
            os.kill(os.getpid(), signal.SIGKILL)


def train(
    work_dir,
    engine,
    *,
    kind='AGVMOptimWrapper',
    optimizer=ADAMW,
    save=ATOMIC,
    hook=None,
    clip_grad=None,
    extra=(),
    cfg=None,
    loop=None,
    launcher='pytorch',
    **kwargs,
):
    """Train on this rank, and return the parameters."""
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
    if engine == 'fsdp':
        wrapper = dict(type='FullyShardedModel', units=UNITS)
    if engine == 'zero':
        optimizer = as_zero(optimizer)
    hooks = [dict(type='VarianceSyncHook', interval=1, begin=0) | (hook or {}), *extra]
    if kind == 'OptimWrapper':
        hooks.pop(0)
    runner = make_runner(
        work_dir,
        dict(
            type=kind,
            optimizer=optimizer,
            clip_grad=clip_grad,
            paramwise_cfg=dict(bias_decay_mult=0.0),
        ),
        images=48,
        batch_size=4,
        train_cfg=loop
        or dict(type='LargeBatchIterTrainLoop', max_iters=UPDATES, total_batch_size=16),
        hooks=hooks,
        checkpoint=dict(type=save, interval=SAVED, by_epoch=False),
        param_scheduler=[dict(type='PolyLR', power=1, end=8, by_epoch=False)],
        launcher=launcher,
        cfg=dict(model_wrapper_cfg=wrapper) | (cfg or {}),
        **kwargs,
    )
    runner.train()
    parameters = runner.model.module.named_parameters()
    return {name: whole(p).clone() for name, p in parameters}


def train_engines(folder, optimizer):
    """Train without interruption, then resume with each engine from each."""
    through = {e: train(folder / e, e, optimizer=optimizer) for e in ENGINES}
    resumed = {
        (first, second): train(
            folder / f'{first}-{second}',
            second,
            optimizer=optimizer,
            load_from=str(folder / first / f'iter_{SAVED}.pth'),
            resume=True,
        )
        for first in ENGINES
        for second in ENGINES
    }
    return through, resumed


def read(path):
    allow_runner_checkpoints()
    return torch.load(path)


@needs_fsdp
@pytest.mark.parametrize('optimizer', [SGD, ADAMW], ids=['SGD', 'AdamW'])
def test_every_engine_resumes_every_other(tmp_path, optimizer):
    for through, resumed in run_on_ranks(train_engines, 2, tmp_path, optimizer):
        for (first, second), found in resumed.items():
            for name, value in through[second].items():
                error = (found[name] - value).abs().max()
                assert error == 0 if first == second else error < 1e-12, (first, second)
    plain = read(tmp_path / 'ddp' / f'iter_{SAVED}.pth')
    for engine in ENGINES[1:]:
        saved = read(tmp_path / engine / f'iter_{SAVED}.pth')
        assert saved['optimizer']['param_groups'] == plain['optimizer']['param_groups']
        assert saved['optimizer']['state'].keys() == plain['optimizer']['state'].keys()
        for index, state in plain['optimizer']['state'].items():
            own = saved['optimizer']['state'][index]
            assert own.keys() == state.keys()
            for name, value in state.items():
                assert type(own[name]) is type(value)
                torch.testing.assert_close(own[name], value, rtol=0, atol=1e-12)
        model = ToyDetector()
        model.load_state_dict(saved['state_dict'])
        settings = {k: v for k, v in optimizer.items() if k != 'type'}
        kind = getattr(torch.optim, optimizer['type'])
        groups = [dict(params=[parameter]) for parameter in model.parameters()]
        kind(groups, **settings).load_state_dict(
            {k: saved['optimizer'][k] for k in ('state', 'param_groups')}
        )


@pytest.mark.parametrize('engine', DIVIDED)
def test_killed_run_resumes_to_the_last_bit(tmp_path, engine):
    through, _ = run_on_ranks(train, 2, tmp_path / 'through', engine)
    died = run_on_ranks(killed, 2, tmp_path / 'broken', engine, check=False)
    assert died == [-signal.SIGKILL] * 2
    resumed, _ = run_on_ranks(resume, 2, tmp_path / 'broken', engine)
    for name, value in through.items():
        assert torch.equal(resumed[name], value)


def killed(work_dir, engine):
    train(work_dir, engine, extra=[dict(type='KillHook')])


def resume(work_dir, engine):
    return train(work_dir, engine, resume=True)


def refusals(folder):
    """Return the error for settings that cannot work."""

    def message(name, engine='zero', **kwargs):
        try:
            train(folder / name, engine, **kwargs)
        except (TypeError, ValueError) as error:
            return f'{type(error).__name__}: {error}'

    return dict(
        overlap=message('overlap', optimizer=dict(SGD, overlap_with_ddp=True)),
        hook=message('hook', save='CheckpointHook'),
        sharded_hook=message('sharded_hook', 'fsdp', save='CheckpointHook'),
        plain=message('plain', kind='OptimWrapper'),
        sharded_plain=message('sharded_plain', 'fsdp', kind='OptimWrapper'),
        # Nothing of AGVM but the wrapper of the model.
        stock=message(
            'stock',
            'fsdp',
            kind='OptimWrapper',
            save='CheckpointHook',
            loop=dict(type='EpochBasedTrainLoop', max_epochs=1),
        ),
        both=message('both', 'fsdp', optimizer=as_zero(SGD)),
        fused=message('fused', 'fsdp', optimizer=SGD | dict(fused=True)),
        clip=message('clip', 'fsdp', clip_grad=dict(max_norm=1, norm_type='inf')),
        ema=message('ema', 'fsdp', extra=[dict(type='EMAHook')]),
        unused=message('unused', 'fsdp', cfg=dict(find_unused_parameters=True)),
        val=message(
            'val',
            'fsdp',
            val_dataloader=dict(
                dataset=dict(type='ImageDataset', images=3),
                sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
                batch_size=1,
            ),
            val_cfg=dict(),
            val_evaluator=dict(type='DumpResults', out_file_path='none.pkl'),
        ),
        comm=message('comm', 'fsdp', hook=dict(comm_hook='bf16_compress_hook')),
        adagrad=message(
            'adagrad', optimizer=dict(type='Adagrad', lr=0.1, weight_decay=0.0)
        ),
    )


@needs_fsdp
def test_refusals(tmp_path):
    for found in run_on_ranks(refusals, 2, tmp_path):
        assert 'remove overlap_with_ddp' in found['overlap']
        assert 'defined for Adam, AdamW, SGD' in found['adagrad']
        assert 'Adagrad' in found['adagrad']
        for name in ('hook', 'sharded_hook'):
            assert found[name].startswith('TypeError: CheckpointHook saves from rank 0')
        for name in ('plain', 'sharded_plain', 'stock'):
            assert 'OptimWrapper cannot save a state that is divided' in found[name]
        assert 'divides whole parameters; use its optimizer_type' in found['both']
        assert 'SGD(fused=True) cannot step slices' in found['fused']
        assert 'norm_type=inf of clip_grad' in found['clip']
        assert 'EMAHook copies the model as a whole' in found['ema']
        assert 'find_unused_parameters=True' in found['unused']
        assert 'the ranks have 1 to 2 batches to validate' in found['val']
        assert "comm_hook='bf16_compress_hook' is a hook of Dist" in found['comm']


def test_zero_on_one_rank_is_refused(tmp_path):
    with pytest.raises(ValueError, match='divides moments over several ranks'):
        train(tmp_path, 'zero', launcher='none')


def steps(engine, saved):
    """Step on this rank, and return the whole state, gathered."""
    _, trained, wrapper = build(engine, ADAMW, 'halves')
    if saved is not None:
        wrapper.load_state_dict(saved)
    else:
        for update in range(2):
            with wrapper.optim_context(trained):
                loss = trained(*shard(update, dist.get_rank(), 0, 1, 3))['loss']
            wrapper.update_params(loss)
    with pytest.raises(RuntimeError, match="type='AtomicCheckpointHook'"):
        wrapper.state_dict()
    with wrapper.gathered():
        return wrapper.state_dict()


@pytest.mark.parametrize('engine', DIVIDED)
def test_state_moves_to_another_number_of_ranks(engine):
    expected = run_on_ranks(steps, 2, engine, None)[0]
    found = run_on_ranks(steps, 3, engine, expected)[0]
    assert found['agvm'] == expected['agvm']
    assert found['state'].keys() == expected['state'].keys()
    for index, state in expected['state'].items():
        for name, value in state.items():
            assert torch.equal(found['state'][index][name], value)
