"""VarianceSyncHook in MMEngine's Runner."""

import json
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from ranks import run_on_ranks
from runners import ImageDataset, make_runner

from agvm_mm.hooks import VarianceSyncHook

AGVM = dict(
    type='AGVMOptimWrapper',
    constructor='AGVMOptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9),
)
MODULES = ['backbone', 'neck', 'bbox_head', 'mask_head']


def epochs(count, total, **kwargs):
    return dict(
        type='LargeBatchTrainLoop', max_epochs=count, total_batch_size=total, **kwargs
    )


def scalars(work_dir):
    """Return the rows of the JSON log."""
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_runner_in_one_process(tmp_path):
    runner = make_runner(
        tmp_path,
        AGVM,
        images=48,
        batch_size=4,
        train_cfg=epochs(2, 16),
        hooks=[dict(type='VarianceSyncHook', interval=2, begin=2)],
    )
    runner.train()
    wrapper = runner.optim_wrapper
    assert (wrapper.num_updates, wrapper.num_measurements) == (6, 2)
    assert wrapper.effective_batch_size == 16
    assert list(wrapper.multipliers) == MODULES

    rows = scalars(tmp_path)
    assert len(rows) == 6
    assert 'agvm/phi/neck' not in rows[1] and 'agvm/phi/neck' in rows[2]
    for module in MODULES:
        phi, mu = rows[-1][f'agvm/phi/{module}'], rows[-1][f'agvm/mu/{module}']
        assert phi == pytest.approx(wrapper.variances[module])
        assert mu == pytest.approx(wrapper.multipliers[module])
    # The logged learning rate is the one of the config.
    assert {row['lr'] for row in rows} == {0.05}
    (log,) = tmp_path.glob('*/*.log')
    assert 'agvm/mu/mask_head: ' in log.read_text()


def test_last_measurement_is_logged_with_its_multiplier(tmp_path):
    runner = make_runner(
        tmp_path,
        AGVM,
        images=48,
        batch_size=4,
        train_cfg=epochs(2, 16),
        hooks=[dict(type='VarianceSyncHook', interval=1, end=3)],
    )
    runner.train()
    rows = scalars(tmp_path)
    assert rows[3]['agvm/mu/neck'] != 1
    assert set(runner.optim_wrapper.multipliers.values()) == {1.0}


def test_runner_with_accumulation_of_mmengine(tmp_path):
    runner = make_runner(
        tmp_path,
        dict(AGVM, accumulative_counts=3),
        images=48,
        batch_size=4,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
        hooks=[dict(type='VarianceSyncHook', interval=1, estimator='replicas')],
    )
    runner.train()
    assert runner.iter == 12
    assert runner.optim_wrapper.num_updates == 4
    assert runner.optim_wrapper.num_measurements == 4
    assert runner.optim_wrapper.effective_batch_size == 12


def distributed_runner(folder, estimator, batch_size):
    from pathlib import Path

    work_dir = Path(folder, f'{estimator}{batch_size}', str(dist.get_rank()))
    runner = make_runner(
        work_dir,
        AGVM,
        images=48,
        batch_size=batch_size,
        train_cfg=epochs(3, 16),
        hooks=[dict(type='VarianceSyncHook', interval=2, estimator=estimator)],
        # The process group exists already, so MMEngine does not start NCCL.
        launcher='pytorch',
        cfg=dict(
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
            )
        ),
    )
    runner.train()
    wrapper = runner.optim_wrapper
    return (
        type(runner.model).__name__,
        {k: p.detach() for k, p in runner.model.state_dict().items()},
        wrapper.state_dict()['agvm'],
    )


def all_distributed_runners(folder):
    return [
        distributed_runner(folder, estimator, batch_size)
        for estimator in ('halves', 'replicas')
        for batch_size in (8, 4)
    ]


def test_runner_on_two_ranks(tmp_path):
    first, second = run_on_ranks(all_distributed_runners, 2, str(tmp_path))
    for (kind, parameters, agvm), (_, other_parameters, other_agvm) in zip(
        first, second, strict=True
    ):
        assert kind == 'MMDistributedDataParallel'
        assert agvm == other_agvm
        assert agvm['num_updates'] == 9 and agvm['num_measurements'] == 5
        assert agvm['effective_batch_size'] == 16
        assert agvm['multipliers']['mask_head'] != 1
        for name, value in parameters.items():
            assert torch.equal(value, other_parameters[name])
    # Two micro-batches of 4 on each rank equal one of 8.
    for accumulated, direct in ((first[1], first[0]), (first[3], first[2])):
        assert accumulated[2]['variances'] == pytest.approx(direct[2]['variances'])


def test_skipped_measurement_is_logged(tmp_path):
    images = ImageDataset(48)
    images.tensors[0][5] = float('nan')
    runner = make_runner(
        tmp_path,
        AGVM,
        images=48,
        batch_size=4,
        train_cfg=epochs(1, 16),
        hooks=[dict(type='VarianceSyncHook', interval=1)],
        shuffle=False,
    )
    with mock.patch.object(ImageDataset, '__getitem__', lambda _, i: images_at(i)):

        def images_at(i):
            return images.tensors[0][i], images.tensors[1][i]

        runner.train()
    assert runner.optim_wrapper.num_skipped_measurements == 3
    (log,) = tmp_path.glob('*/*.log')
    assert 'skipped the measurement at update 0 (1 so far)' in log.read_text()


@pytest.mark.parametrize(
    'optim_wrapper, hooks, error, message',
    [
        (
            dict(
                AGVM, type='OptimWrapper', constructor='DefaultOptimWrapperConstructor'
            ),
            ['VarianceSyncHook'],
            TypeError,
            'needs optim_wrapper=.*AGVMOptimWrapper.*got OptimWrapper',
        ),
        (
            AGVM,
            ['VarianceSyncHook', 'VarianceSyncHook'],
            ValueError,
            'there are 2 hooks VarianceSyncHook.*default_hooks=',
        ),
        (AGVM, [], RuntimeError, 'add default_hooks=.*VarianceSyncHook'),
        (
            {k: v for k, v in AGVM.items() if k != 'constructor'},
            ['VarianceSyncHook'],
            ValueError,
            'add constructor=',
        ),
        (
            AGVM,
            ['VarianceSyncHook'],
            ValueError,
            'one rank and accumulative_counts=1. Start more ranks',
        ),
        (
            dict(AGVM, anchor='rpn_head'),
            ['VarianceSyncHook'],
            ValueError,
            "anchor='rpn_head' is not a module",
        ),
    ],
)
def test_bad_config_stops_before_first_update(
    tmp_path, optim_wrapper, hooks, error, message
):
    runner = make_runner(
        tmp_path,
        optim_wrapper,
        images=8,
        batch_size=4,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
        hooks=[dict(type=name) for name in hooks],
    )
    with pytest.raises(error, match=message):
        runner.train()
    assert runner.iter == 0


def test_compression_without_ranks_is_refused(tmp_path):
    runner = make_runner(
        tmp_path,
        AGVM,
        images=8,
        batch_size=4,
        train_cfg=epochs(1, 8),
        hooks=[dict(type='VarianceSyncHook', comm_hook='fp16_compress_hook')],
    )
    with pytest.raises(ValueError, match='comm_hook=.*several ranks'):
        runner.train()


@pytest.mark.parametrize(
    'setting, error, message',
    [
        (dict(interval=0), ValueError, 'interval must be at least 1, got 0'),
        (dict(begin=-5), ValueError, 'begin must be'),
        (dict(begin=5, end=3), ValueError, 'end must be at least 5'),
        (dict(estimator='halfs'), ValueError, "Did you mean 'halves'"),
        (dict(comm_hook='powersgd'), ValueError, 'comm_hook must be one of'),
    ],
)
def test_bad_settings_are_refused(setting, error, message):
    with pytest.raises(error, match=message):
        VarianceSyncHook(**setting)
