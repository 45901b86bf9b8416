"""AGVM that is switched on or off in the middle of a training, to the last bit."""

import pytest
import torch
from runners import make_runner

PLAIN = dict(type='OptimWrapper', clip_grad=dict(max_norm=5))
OPTIMIZERS = {
    'SGD': dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-3),
    'AdamW': dict(type='AdamW', lr=0.01, weight_decay=0.05),
}
LOOPS = {
    'large batch': dict(type='LargeBatchTrainLoop', total_batch_size=8),
    'MMEngine': dict(type='EpochBasedTrainLoop'),
}
# Updates of an epoch.
EPOCH = 4


def run(work_dir, optimizer, loop, *, epochs, agvm=None, **kwargs):
    """Train and return weights and optimizer state."""
    wrapper = dict(PLAIN, optimizer=dict(OPTIMIZERS[optimizer]))
    if loop == 'MMEngine':
        wrapper['accumulative_counts'] = 2
    hooks = []
    if agvm is not None:
        wrapper['type'] = 'AGVMOptimWrapper'
        hooks = [dict(type='VarianceSyncHook', interval=1, **agvm)]
    runner = make_runner(
        work_dir,
        wrapper,
        images=8 * EPOCH,
        batch_size=4,
        train_cfg=dict(LOOPS[loop], max_epochs=epochs),
        hooks=hooks,
        checkpoint=dict(type='CheckpointHook', interval=1),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
            dict(type='MultiStepLR', milestones=[3], gamma=0.5),
        ],
        **kwargs,
    )
    runner.train()
    state = runner.optim_wrapper.optimizer.state_dict()
    moments = [
        value
        for each in state['state'].values()
        for value in each.values()
        if isinstance(value, torch.Tensor)
    ]
    return [*runner.model.state_dict().values(), *moments], runner


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_agvm_is_switched_on_by_resuming_a_plain_run(tmp_path, optimizer, loop):
    agvm = dict(begin=2 * EPOCH)
    whole, whole_runner = run(tmp_path / 'whole', optimizer, loop, epochs=4, agvm=agvm)
    plain, _ = run(tmp_path / 'plain', optimizer, loop, epochs=4)
    folder = tmp_path / 'resumed'
    resumed, runner = run(
        folder,
        optimizer,
        loop,
        epochs=4,
        agvm=agvm,
        resume=True,
        load_from=str(tmp_path / 'plain' / 'epoch_2.pth'),
    )
    assert_same(whole, resumed)
    assert not all(map(torch.equal, whole, plain))
    assert runner.optim_wrapper.agvm.num_updates == 4 * EPOCH
    expected = whole_runner.optim_wrapper.agvm.state_dict()
    assert runner.optim_wrapper.agvm.state_dict() == expected
    log = ''.join(path.read_text() for path in folder.glob('*/*.log'))
    assert 'the checkpoint is that of a run without AGVM' in log


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_agvm_is_switched_off_by_resuming_without_it(tmp_path, optimizer, loop):
    whole, _ = run(
        tmp_path / 'whole',
        optimizer,
        loop,
        epochs=4,
        agvm=dict(begin=0, end=2 * EPOCH - 1),
    )
    run(tmp_path / 'agvm', optimizer, loop, epochs=4, agvm=dict(begin=0))
    resumed, _ = run(
        tmp_path / 'resumed',
        optimizer,
        loop,
        epochs=4,
        resume=True,
        load_from=str(tmp_path / 'agvm' / 'epoch_2.pth'),
    )
    plain, _ = run(tmp_path / 'plain', optimizer, loop, epochs=4)
    assert_same(whole, resumed)
    assert not all(map(torch.equal, whole, plain))


def test_checkpoint_with_a_group_for_each_module_is_refused(tmp_path):
    run(tmp_path, 'SGD', 'large batch', epochs=2, agvm={})
    path = tmp_path / 'epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)
    checkpoint['optimizer']['param_groups'][0]['module'] = 'backbone'
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match='older agvm_mm.*load_from'):
        run(
            tmp_path,
            'SGD',
            'large batch',
            epochs=2,
            agvm={},
            resume=True,
            load_from=str(path),
        )
