"""Faults on one rank: all ranks act alike, and none hangs."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from ranks import run_on_ranks
from runners import make_runner
from toy import ToyDetector

from agvm_mm.training.variance_sync import explain_rejected

AGVM = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(type='SGD', lr=0.05),
)


@HOOKS.register_module(force=True)
class SpoilHook(Hook):
    """Hook that spoils the gradients of one module on one rank at some updates."""

    priority = 'VERY_HIGH'

    def __init__(self, rank, updates, module='neck', value=float('nan')):
        self.rank, self.updates = rank, updates
        self.module, self.value = module, value

    def before_train(self, runner):
        self.runner = runner
        model = getattr(runner.model, 'module', runner.model)
        model.get_submodule(self.module).register_full_backward_hook(self.spoil)

    def spoil(self, module, grad_input, grad_output):
        if dist.get_rank() == self.rank and self.runner.iter in self.updates:
            return tuple(None if g is None else g * self.value for g in grad_input)


@HOOKS.register_module(force=True)
class FailHook(Hook):
    """Hook that raises, exits or sleeps on one rank at one update."""

    def __init__(self, rank, update, how):
        self.rank, self.update, self.how = rank, update, how

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if dist.get_rank() == self.rank and runner.iter == self.update:
            if self.how == 'raise':
                raise OSError('bad disk')
            if self.how == 'exit':
                os._exit(3)
            time.sleep(20)


def train(folder, hooks, epochs=4, interval=1, **kwargs):
    """Train on this rank and return the runner."""
    runner = make_runner(
        Path(folder),
        kwargs.pop('optim_wrapper', AGVM),
        images=32,
        batch_size=4,
        train_cfg=dict(
            type='LargeBatchTrainLoop', max_epochs=epochs, total_batch_size=16
        ),
        hooks=[
            dict(type='VarianceSyncHook', interval=interval, **kwargs.pop('agvm', {})),
            *hooks,
        ],
        checkpoint=dict(type='AtomicCheckpointHook', by_epoch=False, interval=1),
        launcher='pytorch',
        cfg=dict(
            model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)
        ),
    )
    runner.train()
    return runner


def spoiled_rank(folder, estimator):
    runner = train(
        folder,
        [dict(type='SpoilHook', rank=1, updates=[2], value=float('inf'))],
        agvm=dict(estimator=estimator),
        epochs=2,
    )
    state = runner.optim_wrapper.state_dict()['agvm']
    return state, {k: p.detach() for k, p in runner.model.named_parameters()}


@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
def test_non_finite_gradient_on_one_rank_is_skipped_on_all(tmp_path, estimator):
    first, second = run_on_ranks(spoiled_rank, 2, str(tmp_path), estimator)
    assert repr(first[0]) == repr(second[0])
    # MMEngine steps with the gradient as it is: the parameters before the fault in the
    # network are not finite from then on.
    assert first[0]['num_measurements'] == 2
    assert first[0]['num_skipped_measurements'] == 2
    assert not first[1]['module.backbone.0.weight'].isfinite().any()
    for name, value in first[1].items():
        torch.testing.assert_close(
            value, second[1][name], rtol=0, atol=0, equal_nan=True
        )
    log = ''.join(p.read_text() for p in tmp_path.glob('*/*.log'))
    assert 'skipped the measurement at update 2 (1 so far)' in log
    assert 'gradients are not finite in backbone' in log


def stopping_rank(folder):
    train(
        folder,
        [dict(type='SpoilHook', rank=1, updates=range(2, 99), module='neck')],
        agvm=dict(max_rejected=3),
    )


def test_run_stops_after_max_rejected_measurements_in_a_row(tmp_path):
    messages = run_on_ranks(stopping_rank, 2, str(tmp_path), check=False)
    for message in messages:
        assert 'FloatingPointError: AGVM: 3 measurements in a row' in message
        # From update 2 on the backbone, and with it every output, is NaN.
        assert 'up to update 4' in message


def test_message_names_module_where_it_began():
    nan = float('nan')
    reason, advice = explain_rejected(
        dict(backbone=nan, neck=nan, head=0.1), 'backbone'
    )
    assert 'not finite in backbone, neck, but finite in head' in reason
    assert 'learning rate' in advice
    reason, advice = explain_rejected(dict(neck=0.1), 'backbone')
    assert "'backbone' had no gradient" in reason
    assert 'another anchor' in advice


def failing_rank(folder, how):
    train(folder, [dict(type='FailHook', rank=1, update=3, how=how)])


@pytest.mark.parametrize('how', ['raise', 'exit'])
def test_other_ranks_end_when_one_fails(tmp_path, how):
    began = time.monotonic()
    survivor, dead = run_on_ranks(
        failing_rank, 2, str(tmp_path), how, timeout=20, check=False
    )
    assert time.monotonic() - began < 60
    assert 'Error' in survivor and 'update_params' in survivor
    assert dead == 3 if how == 'exit' else 'bad disk' in dead
    # Every checkpoint is complete, and the newest is that of the last update that both
    # ranks finished.
    assert sorted(p.name for p in tmp_path.glob('iter_*')) == [
        f'iter_{n}.pth' for n in (1, 2, 3)
    ]
    assert Path((tmp_path / 'last_checkpoint').read_text()).name == 'iter_3.pth'


def sleeping_rank(folder):
    train(folder, [dict(type='FailHook', rank=1, update=1, how='sleep')])


def test_other_ranks_end_within_timeout_when_one_hangs(tmp_path):
    began = time.monotonic()
    survivor, _ = run_on_ranks(sleeping_rank, 2, str(tmp_path), timeout=5, check=False)
    assert 'Timed out' in survivor or 'timed out' in survivor
    assert time.monotonic() - began < 90


def disagreeing_rank(folder, what):
    rank = dist.get_rank()
    agvm, kwargs = {}, {}
    if what == 'interval':
        kwargs['interval'] = 1 + rank
    elif what == 'begin':
        agvm['begin'] = rank
    elif what == 'estimator':
        agvm['estimator'] = ('halves', 'replicas')[rank]
    elif what == 'learning rates':
        optimizer = dict(type='SGD', lr=0.05 * (1 + rank))
        kwargs['optim_wrapper'] = dict(AGVM, optimizer=optimizer)
    elif what == 'momentum':
        kwargs['optim_wrapper'] = dict(AGVM, momentum=0.9 + 0.05 * rank)
    elif what == 'parameters of each module':
        modules = dict(backbone=['backbone'], rest=['neck', 'roi_head'])
        if rank:
            modules = dict(backbone=['backbone', 'neck'], rest=['roi_head'])
        kwargs['optim_wrapper'] = dict(AGVM, modules=modules)
    train(folder, [], agvm=agvm, **kwargs)


@pytest.mark.parametrize(
    'what',
    [
        'interval',
        'begin',
        'estimator',
        'momentum',
        'learning rates',
        'parameters of each module',
    ],
)
def test_disagreeing_ranks_are_refused_at_the_start(tmp_path, what):
    messages = run_on_ranks(disagreeing_rank, 2, str(tmp_path), what, check=False)
    for message in messages:
        assert f'ValueError: the ranks disagree on {what}: rank 0 has' in message
        assert 'rank 1 has' in message


def test_head_without_gradient_on_one_rank_gives_no_nan(tmp_path):
    """The mask head has a zero gradient on rank 1, as if there were no positives."""
    variances = run_on_ranks(no_positives_rank, 2, str(tmp_path))
    for phi in variances:
        assert phi == variances[0]
        assert phi['mask_head'] == pytest.approx(1)
        assert all(0 <= value <= 2 for value in phi.values())


def no_positives_rank(folder):
    forward = ToyDetector.forward

    def without_positives(self, *args, **kwargs):
        losses = forward(self, *args, **kwargs)
        if dist.get_rank():
            self.use_mask_head = False
            losses = forward(self, *args, **kwargs)
            # Like MMDetection's heads: a loss of zero that has a gradient.
            losses['zero'] = 0 * sum(
                p.sum() for p in self.roi_head['mask_head'].parameters()
            )
            losses = dict(loss=losses['loss'] + losses['zero'])
        return losses

    ToyDetector.forward = without_positives
    runner = train(folder, [], epochs=1)
    return runner.optim_wrapper.agvm.variances
