"""VarianceSyncHook in MMEngine's Runner."""

import json
import re
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import LoggerHook
from ranks import run_on_ranks
from runners import ImageDataset, make_runner

from agvm_mm import VarianceSyncHook, cli
from agvm_mm.method import noise_scale
from agvm_mm.training.batch import BatchSize
from agvm_mm.training.summary import describe_run

AGVM = dict(
    type='AGVMOptimWrapper',
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


def measurements(work_dir):
    """Return the records of measured updates, by step."""
    rows = scalars(work_dir)
    return {row['step']: row for row in rows if any('agvm/' in key for key in row)}


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
    assert (wrapper.agvm.num_updates, wrapper.agvm.num_measurements) == (6, 2)
    assert runner.message_hub.get_info('agvm_total_batch_size') == 16
    assert list(wrapper.agvm.multipliers) == MODULES

    rows = [row for row in scalars(tmp_path) if 'lr' in row]
    assert len(rows) == 6
    # A measurement is logged once, with the step of its update.
    assert list(measurements(tmp_path)) == [3, 5]
    last = measurements(tmp_path)[5]
    for module in MODULES:
        phi, mu = last[f'agvm/phi_{module}'], last[f'agvm/mu_{module}']
        assert phi == pytest.approx(wrapper.agvm.variances[module])
        assert mu == pytest.approx(wrapper.agvm.multipliers[module])
    # The logged learning rate is the one of the config.
    assert {row['lr'] for row in rows} == {0.05}
    (log,) = tmp_path.glob('*/*.log')
    text = log.read_text()
    assert text.count('AGVM at update ') == 2
    assert re.search(r'AGVM at update 4  Phi: .*  mu: .*, mask_head \d', text)
    assert not re.search(r'Epoch\(train\).*(agvm|micro_batches)', text)


@pytest.mark.parametrize(
    ('interval', 'ignore_last', 'lines'),
    [(50, True, 2), (50, False, 2), (2, True, 4), (2, False, 6), (5, True, 2)],
)
def test_each_line_of_the_log_has_the_measurement_before_it(
    tmp_path, interval, ignore_last, lines
):
    runner = make_runner(
        tmp_path,
        AGVM,
        images=40,
        batch_size=2,
        train_cfg=epochs(2, 8),
        hooks=[dict(type='VarianceSyncHook', interval=1)],
    )
    (logger,) = (hook for hook in runner.hooks if isinstance(hook, LoggerHook))
    logger.interval, logger.ignore_last = interval, ignore_last
    runner.train()
    (log,) = tmp_path.glob('*/*.log')
    kinds = re.findall(r'AGVM at update|Epoch\(train\)', log.read_text())
    assert kinds == lines * ['AGVM at update', 'Epoch(train)']


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
    rows = measurements(tmp_path)
    assert list(rows) == [1, 2, 3, 4] and rows[4]['agvm/mu_neck'] != 1
    assert set(runner.optim_wrapper.agvm.multipliers.values()) == {1.0}


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
    assert runner.optim_wrapper.agvm.num_updates == 4
    assert runner.optim_wrapper.agvm.num_measurements == 4
    assert runner.message_hub.get_info('agvm_total_batch_size') == 12


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
    assert runner.optim_wrapper.agvm.num_skipped_measurements == 3
    (log,) = tmp_path.glob('*/*.log')
    assert 'skipped the measurement at update 0 (1 so far)' in log.read_text()


@pytest.mark.parametrize(
    'optim_wrapper, hooks, error, message',
    [
        (
            dict(AGVM, type='OptimWrapper'),
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


BAD_SETTINGS = [
    (dict(interval=0), ValueError, 'interval must be at least 1, got 0'),
    (dict(begin=-5), ValueError, 'begin must be'),
    (
        dict(begin='warm-up'),
        ValueError,
        "begin must be one of 'warmup', got 'warm-up'",
    ),
    (dict(begin=1.5), TypeError, 'begin must be a whole number'),
    (dict(act=1), TypeError, 'act must be True or False'),
    (dict(begin=5, end=3), ValueError, 'end must be at least 5'),
    (dict(estimator='halfs'), ValueError, "Did you mean 'halves'"),
    (dict(comm_hook='powersgd'), ValueError, 'comm_hook must be one of'),
]


def test_bad_settings_are_refused(subtests):
    for setting, error, message in BAD_SETTINGS:
        with (
            subtests.test(setting=setting, error=error),
            pytest.raises(error, match=message),
        ):
            VarianceSyncHook(**setting)


def images_of(mode, **kwargs):
    """Return a training config: our loop, or MMEngine's own with accumulation."""
    if mode == 'loop':
        return dict(optim_wrapper=AGVM, train_cfg=epochs(2, 16), **kwargs)
    return dict(
        optim_wrapper=dict(AGVM, accumulative_counts=4),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2),
        **kwargs,
    )


@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
@pytest.mark.parametrize('mode', ['loop', 'accumulation'])
def test_noise_scale_is_logged_in_images(tmp_path, mode, estimator):
    hook = dict(type='VarianceSyncHook', interval=2, estimator=estimator)
    runner = make_runner(
        tmp_path, images=48, batch_size=4, hooks=[hook], **images_of(mode)
    )
    runner.train()
    rows = list(measurements(tmp_path).values())
    averages = runner.optim_wrapper.agvm.noise.averages()
    assert set(averages) == {*MODULES, 'all'}
    for module, (signal, noise) in averages.items():
        expected = noise / signal if signal > 0 else None
        assert rows[-1].get(f'agvm/noise_scale_{module}') == pytest.approx(expected)
    if estimator == 'replicas':
        # The averages of the first measurement are that measurement.
        for module in MODULES:
            phi, scale = (rows[0].get(f'agvm/{key}_{module}') for key in KEYS)
            if phi < 2 and scale:
                assert phi == pytest.approx(1 / (1 + 16 / (2 * scale)))


KEYS = ('phi', 'noise_scale')


def test_smaller_last_update_counts_its_own_images(tmp_path):
    runner = make_runner(
        tmp_path,
        AGVM,
        images=24,  # An update of 16 images and one of 8.
        batch_size=4,
        train_cfg=epochs(1, 16),
        hooks=[dict(type='VarianceSyncHook', interval=1, estimator='replicas')],
    )
    seen = []
    receive = noise_scale.NoiseAverages.update

    def record(averages, measured, learning_rate):
        seen.append(measured)
        receive(averages, measured, learning_rate)

    with mock.patch.object(noise_scale.NoiseAverages, 'update', record):
        runner.train()
    phis = [
        {module: row[f'agvm/phi_{module}'] for module in MODULES}
        for row in measurements(tmp_path).values()
    ]
    assert len(seen) == len(phis) == 2
    for images, measured, phi in zip((16, 8), seen, phis, strict=True):
        for module, (signal, noise) in measured.items():
            # Phi = 2 noise / (2 noise + B signal), whatever the sign of the signal.
            expected = 2 * noise / (2 * noise + images * signal)
            assert phi[module] == pytest.approx(expected, rel=1e-6)


def run_measuring(work_dir, optim_wrapper, hooks, **kwargs):
    runner = make_runner(
        work_dir,
        optim_wrapper,
        images=48,
        batch_size=4,
        hooks=hooks,
        randomness=dict(seed=3),
        **dict(train_cfg=epochs(2, 16)) | kwargs,
    )
    runner.train()
    return runner


MEASURE = dict(type='VarianceSyncHook', interval=2, act=False)
PLAIN = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
ADAMAX = dict(type='AGVMOptimWrapper', optimizer=dict(type='Adamax', lr=0.01))


@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
@pytest.mark.parametrize('optim_wrapper', [AGVM, ADAMAX], ids=['SGD', 'Adamax'])
@pytest.mark.parametrize('loop', ['large batch', 'MMEngine'])
def test_hook_that_does_not_act_changes_nothing(
    tmp_path, optim_wrapper, estimator, loop
):
    kwargs, settings = {}, {}
    if loop == 'MMEngine':
        settings['accumulative_counts'] = 4
        kwargs['train_cfg'] = dict(type='EpochBasedTrainLoop', max_epochs=2)
    plain = dict(optim_wrapper, type='OptimWrapper')
    expected = run_measuring(tmp_path / 'plain', plain | settings, [], **kwargs)
    # MMEngine keeps one logger for each name.
    folder = tmp_path / f'{loop} {estimator} {optim_wrapper["optimizer"]["type"]}'
    hook = dict(MEASURE, estimator=estimator)
    runner = run_measuring(folder, optim_wrapper | settings, [hook], **kwargs)
    for p, q in zip(
        expected.model.parameters(), runner.model.parameters(), strict=True
    ):
        assert torch.equal(p, q)
    wrapper = runner.optim_wrapper
    assert (wrapper.agvm.num_updates, wrapper.agvm.num_measurements) == (6, 3)
    *_, row = measurements(folder).values()
    assert {f'agvm/phi_{module}' for module in MODULES} <= row.keys()
    assert 'agvm/noise_scale_all' in row
    assert not [key for key in row if key.startswith('agvm/mu_')]
    assert 'not acting' in next(folder.glob('*/*.log')).read_text()


def test_measuring_run_resumes_its_averages_and_a_run_without_the_hook_too(tmp_path):
    whole = run_measuring(tmp_path / 'whole', AGVM, [MEASURE])
    checkpoint = dict(type='CheckpointHook', interval=1)
    folder = tmp_path / 'parts'
    run_measuring(
        folder, AGVM, [MEASURE], train_cfg=epochs(1, 16), checkpoint=checkpoint
    )
    resumed = run_measuring(folder, AGVM, [MEASURE], resume=True)
    expected = whole.optim_wrapper.agvm.noise.averages()
    assert resumed.optim_wrapper.agvm.noise.averages() == expected
    assert resumed.optim_wrapper.agvm.num_updates == 6
    plain = run_measuring(
        folder, PLAIN, [], load_from=str(folder / 'epoch_1.pth'), resume=True
    )
    for p, q in zip(whole.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_measuring_starts_on_a_checkpoint_of_a_plain_run(tmp_path):
    checkpoint = dict(type='CheckpointHook', interval=1)
    run_measuring(tmp_path, PLAIN, [], train_cfg=epochs(1, 16), checkpoint=checkpoint)
    resumed = run_measuring(tmp_path, AGVM, [MEASURE], resume=True)
    # Updates 3 to 5, of which 4 is measured.
    wrapper = resumed.optim_wrapper
    assert (wrapper.agvm.num_updates, wrapper.agvm.num_measurements) == (6, 1)


def test_acting_with_an_optimizer_without_a_rule_is_refused(tmp_path):
    with pytest.raises(TypeError, match='Adam, AdamW, SGD and their.*Adamax'):
        run_measuring(tmp_path, ADAMAX, [dict(type='VarianceSyncHook')])


def test_measuring_with_a_wrapper_of_mmengine_is_refused(tmp_path):
    with pytest.raises(TypeError, match='AGVMOptimWrapper.*got OptimWrapper'):
        run_measuring(tmp_path, PLAIN, [MEASURE])


IN_EPOCHS = dict(type='LinearLR', end=1, by_epoch=True, convert_to_iter_based=True)
WARMUPS = {
    'none': ([], 0),
    'LinearLR': ([dict(type='LinearLR', by_epoch=False, end=4)], 3),
    'ExponentialWarmupLR': (
        [
            dict(type='ExponentialWarmupLR', by_epoch=False, end=2),
            dict(type='MultiStepLR', milestones=[1]),
        ],
        2,
    ),
    'in epochs': ([IN_EPOCHS], 2),
    'OneCycleLR': (
        [dict(type='OneCycleLR', eta_max=0.1, total_steps=7, by_epoch=False)],
        1,
    ),
    # Its update 2 steps at iteration 11, the last one of the warm-up.
    'accumulated': ([IN_EPOCHS], 2),
    # It steps on results of the validation, which this run does not have.
    'metric': ([dict(type='ReduceOnPlateauLR', monitor='loss')], 0),
}


@pytest.mark.parametrize('name', WARMUPS)
def test_agvm_begins_when_the_warmup_has_ended(tmp_path, name):
    schedules, begin = WARMUPS[name]
    wrapper, kwargs = AGVM, {}
    if name == 'accumulated':  # In a loop of MMEngine.
        wrapper = dict(AGVM, accumulative_counts=4)
        kwargs['train_cfg'] = dict(type='EpochBasedTrainLoop', max_epochs=2)
    runner = run_measuring(
        tmp_path / name,
        wrapper,
        [dict(type='VarianceSyncHook', interval=1)],
        param_scheduler=schedules,
        **kwargs,
    )
    agvm = runner.optim_wrapper.agvm
    assert agvm.schedule.begin == begin
    assert agvm.num_measurements == 6 - begin
    # That of the rates which the updates had.
    rates = [row['lr'] for row in scalars(tmp_path / name) if 'lr' in row]
    step = len(rates) // 6
    rates, peak = rates[step - 1 :: step], max(rates)
    assert rates[begin] > 0.99 * peak
    assert all(rate <= 0.99 * peak for rate in rates[:begin])


def test_schedules_in_epochs_do_not_step_in_a_loop_of_iterations(tmp_path):
    """Its warm-up of one epoch would end at update 6 of a loop with epochs."""
    runner = run_measuring(
        tmp_path,
        dict(AGVM, accumulative_counts=2),
        [dict(type='VarianceSyncHook', interval=1)],
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=24),
        param_scheduler=[dict(type='ConstantLR', factor=0.1, end=1)],
    )
    assert runner.optim_wrapper.agvm.schedule.begin == 0
    rates = {row['lr'] for row in scalars(tmp_path) if 'lr' in row}
    assert list(rates) == pytest.approx([0.005])


@pytest.mark.parametrize('act', [True, False])
@pytest.mark.parametrize(
    'begin, schedules',
    [
        (6, []),
        (1020, []),
        ('warmup', [dict(type='ConstantLR', factor=0.1, by_epoch=False, end=100)]),
    ],
)
def test_begin_that_is_not_reached_is_refused(tmp_path, begin, schedules, act):
    hook = dict(type='VarianceSyncHook', begin=begin, act=act)
    if begin == 'warmup':
        # The learning rate is constant as far as this run goes.
        runner = run_measuring(tmp_path, AGVM, [hook], param_scheduler=schedules)
        assert runner.optim_wrapper.agvm.schedule.begin == 0
        return
    message = f'begin={begin}, end=None and interval=10 measure none of the 6 updates'
    with pytest.raises(ValueError, match=message):
        run_measuring(tmp_path, AGVM, [hook], param_scheduler=schedules)


@pytest.mark.parametrize('begin, end, interval', [(1, 5, 6), (1, 3, 4), (3, None, 8)])
def test_run_without_an_update_to_measure_is_refused(tmp_path, begin, end, interval):
    hook = dict(type='VarianceSyncHook', begin=begin, end=end, interval=interval)
    last = 5 if end is None else end
    assert all(update % interval for update in range(begin, last + 1))
    message = f'begin={begin}, end={end} and interval={interval} measure none of the 6'
    with pytest.raises(ValueError, match=message):
        run_measuring(tmp_path, AGVM, [hook])
    hook['interval'] = last
    agvm = run_measuring(tmp_path, AGVM, [hook]).optim_wrapper.agvm
    assert agvm.num_measurements == 1


@pytest.mark.parametrize('loop', ['large batch', 'tools'])
def test_optimizer_that_does_not_exist_is_named_with_the_nearest(tmp_path, loop):
    wrapper = dict(AGVM, optimizer=dict(type='AdamV', lr=0.01))
    with pytest.raises(KeyError, match="AdamV.*is not registered.*Did you mean 'Adam"):
        if loop == 'tools':
            cfg = dict(
                model=dict(type='ToyDetector'),
                work_dir=str(tmp_path),
                optim_wrapper=wrapper,
                train_cfg=dict(by_epoch=True, max_epochs=1),
                train_dataloader=dict(dataset=dict(type='ImageDataset', images=4)),
            )
            cli.build_runner(Config(cfg), 'none')
        else:
            run_measuring(tmp_path, wrapper, [dict(type='VarianceSyncHook')])


def measuring_rank(folder):
    from pathlib import Path

    runner = run_measuring(
        Path(folder, str(dist.get_rank())),
        AGVM,
        [MEASURE],
        launcher='pytorch',
        cfg=dict(
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
            )
        ),
    )
    return runner.optim_wrapper.agvm.noise.averages()


def test_measuring_on_two_ranks(tmp_path):
    first, second = run_on_ranks(measuring_rank, 2, str(tmp_path))
    assert set(first) == {*MODULES, 'all'}
    assert first == second


def test_summary_of_several_ranks_says_that_sync_bn_biases_noise_scales(tmp_path):
    runner = run_measuring(tmp_path, AGVM, [MEASURE], train_cfg=epochs(1, 16))
    agvm = runner.optim_wrapper.agvm
    runner.model.add_module('norm', torch.nn.SyncBatchNorm(3))
    alone, together = (
        describe_run(runner, BatchSize(ranks, 4, 2), agvm, 'halves') for ranks in (1, 2)
    )
    assert 'SyncBN couples' not in alone
    assert 'noise     scales of micro-batches of 4 image(s)' in alone
    assert 'SyncBN    sees a micro-batch of all ranks: 2 x 4 images' in together
    assert 'SyncBN couples the ranks, so noise scales are biased' in together
