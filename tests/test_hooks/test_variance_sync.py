"""VarianceSyncHook through MMEngine's Runner, and what it refuses."""

import json
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from mmengine.optim import OptimWrapper, OptimWrapperDict
from ranks import run_on_ranks
from runners import ImageDataset, make_runner
from torch.nn.parallel import DistributedDataParallel
from toy import ToyDetector, make_wrapper

from agvm_mm.hooks import VarianceSyncHook
from agvm_mm.hooks.variance_sync import check_model, check_optim_wrapper

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
    """Rows of the JSON log that hold training values."""
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
    # The learning rate that is logged is the one of the config.
    assert {row['lr'] for row in rows} == {0.05}
    (log,) = tmp_path.glob('*/*.log')
    assert 'agvm/mu/mask_head: ' in log.read_text()


def test_runner_with_mmengines_own_accumulation(tmp_path):
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
        # The group is there already: no launcher starts NCCL.
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
    # Two micro-batches of 4 on each rank are one of 8 to DDP's ranks.
    for accumulated, direct in ((first[1], first[0]), (first[3], first[2])):
        assert accumulated[2]['variances'] == pytest.approx(direct[2]['variances'])


def test_a_skipped_measurement_is_logged(tmp_path):
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
    assert 'left out the measurement at update 0 (1 so far)' in log.read_text()


@pytest.mark.parametrize(
    'optim_wrapper, hooks, error, message',
    [
        (
            dict(
                AGVM, type='OptimWrapper', constructor='DefaultOptimWrapperConstructor'
            ),
            ['VarianceSyncHook'],
            TypeError,
            'needs optim_wrapper=.*AGVMOptimWrapper.*has OptimWrapper',
        ),
        (AGVM, [], RuntimeError, 'add custom_hooks=.*VarianceSyncHook'),
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
def test_the_runner_stops_before_the_first_update(
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


def test_optim_wrapper_dict_is_refused():
    wrapper = OptimWrapper(torch.optim.SGD(ToyDetector().parameters(), lr=0.1))
    with pytest.raises(TypeError, match='OptimWrapperDict'):
        check_optim_wrapper(OptimWrapperDict(generator=wrapper))
    check_optim_wrapper(make_wrapper(ToyDetector()))


def wrapped_models_rank():
    """Messages for models wrapped in ways that AGVM cannot work with."""
    from mmengine.model import MMSeparateDistributedDataParallel
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    def message(model, accumulation=1):
        try:
            check_model(model, accumulation)
        except (TypeError, ValueError) as error:
            return f'{type(error).__name__}: {error}'

    fsdp = FullyShardedDataParallel(ToyDetector(), device_id=torch.device('cpu'))
    inside = torch.nn.Sequential(
        FullyShardedDataParallel(ToyDetector(), device_id=torch.device('cpu'))
    )
    sharded = ToyDetector()
    fully_shard(
        sharded, mesh=dist.device_mesh.init_device_mesh('cpu', (dist.get_world_size(),))
    )
    separate = ToyDetector()
    separate.roi_head = torch.nn.Linear(2, 2)
    return dict(
        fsdp=message(fsdp),
        fsdp_inside=message(inside),
        fully_shard=message(sharded),
        separate=message(
            MMSeparateDistributedDataParallel(
                separate, broadcast_buffers=False, device_ids=None
            )
        ),
        data_parallel=message(torch.nn.DataParallel(ToyDetector())),
        static=message(DistributedDataParallel(ToyDetector(), static_graph=True)),
        static_accumulated=message(
            DistributedDataParallel(ToyDetector(), static_graph=True), 2
        ),
        ddp_accumulated=message(DistributedDataParallel(ToyDetector()), 2),
        not_wrapped=message(ToyDetector()),
    )


def test_models_wrapped_in_other_ways_are_refused():
    messages, _ = run_on_ranks(wrapped_models_rank, 2)
    for name in ('fsdp', 'fsdp_inside', 'fully_shard'):
        assert messages[name].startswith('TypeError: AGVM does not support FSDP')
    assert 'wrapped in MMSeparateDistributedDataParallel' in messages['separate']
    assert 'wrapped in DataParallel' in messages['data_parallel']
    assert 'static_graph=True with 2' in messages['static_accumulated']
    assert '2 ranks, but the model is not wrapped' in messages['not_wrapped']
    for name in ('static', 'ddp_accumulated'):
        assert messages[name] is None
    check_model(ToyDetector(), 2)
