"""Plan of a run, against numbers worked out here."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from runners import make_runner

from agvm_mm import cli
from agvm_mm.report import plan
from agvm_mm.report.forecast import NoiseScales
from agvm_mm.report.plan import Plan

ROOT = Path(__file__).parents[2]
AGVM_512 = ROOT / 'configs/faster_rcnn/faster-rcnn_r50_fpn_agvm-sgd_b512_16e_coco.py'
AGVM_10K = ROOT / 'configs/retinanet/retinanet_r18_fpn_agvm-adamw_b10240_12e_coco.py'
STOCK = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
STOCK_ADE = 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'
SWIN = ROOT / 'configs/upernet/upernet_swin-t_agvm-adamw_b1024_5k_ade20k-512x512.py'


def make(
    config: Path | str,
    gpus: int,
    images_per_gpu: int | None = None,
    images: int | None = None,
    *,
    noise: NoiseScales | None = None,
    images_per_second: float | None = None,
    **options: Any,
) -> Plan:
    cfg = cli.load_config(str(config), options)
    return plan.Plan(
        cfg,
        gpus,
        images_per_gpu,
        images,
        noise=noise,
        images_per_second=images_per_second,
    )


def test_faster_rcnn_at_512():
    made = make(AGVM_512, 8)
    assert (made.epoch, made.updates, made.micro_batches) == (230, 3680, 4)
    # The released recipe: exponential warm-up from 1e-3 to 0.38 over 460 updates.
    assert made.lr[0] == pytest.approx(0.38e-3)
    assert made.lr[230] == pytest.approx(0.38 * 0.001**0.5)
    assert made.lr[460] == pytest.approx(0.38)
    assert made.lr[12 * 230 - 1] == pytest.approx(0.38)
    assert made.lr[12 * 230] == pytest.approx(0.038)
    assert made.lr[14 * 230] == pytest.approx(0.0038)
    assert made.measurements == len([t for t in range(560, 3680) if t % 10 == 0])
    # 41.5 million trainable parameters of 4 bytes.
    assert 4 * sum(made.modules.values()) == pytest.approx(166e6, rel=0.01)
    assert not made.warnings


ZERO = {
    'optim_wrapper.optimizer.type': 'ZeroRedundancyOptimizer',
    'optim_wrapper.optimizer.optimizer_type': 'AdamW',
}
PLAIN_SGD = dict(_delete_=True, type='SGD', lr=0.1)


def test_memory_that_ranks_divide(subtests):
    for options, held, moments in [
        ({}, 1, 2),
        (ZERO, 1, 0.5),
        ({'model_wrapper_cfg.type': 'FullyShardedModel'}, 0.25, 0.5),
        ({'optim_wrapper.optimizer.amsgrad': True}, 1, 3),
        ({'optim_wrapper.optimizer': PLAIN_SGD}, 1, 0),
        ({'optim_wrapper.optimizer': PLAIN_SGD | dict(momentum=0.9)}, 1, 1),
    ]:
        with subtests.test(options=options):
            made = make(AGVM_10K, 4, 2560, **options)
            size = 4 * sum(made.modules.values())
            own, state = (plan.format_bytes(n * size) for n in (held, moments))
            expected = f'parameters {own}, gradient {own}, moments {state}; plus'
            assert expected in plan.describe(made)


def test_swin_that_counts_iterations():
    made = make(SWIN, 64)
    assert made.updates == 5000
    assert made.optimizer == 'AdamW'
    assert set(made.modules) == {'backbone', 'decode_head', 'auxiliary_head'}
    assert len(made.lr) == 5000 and max(made.lr) == pytest.approx(1e-4 * 8, rel=1e-3)


def test_accumulation_by_mmengine_shortens_the_warmup(tmp_path: Path):
    # mmengine #1308: 500 iterations of warm-up are 125 updates.
    config = tmp_path / 'config.py'
    config.write_text(
        "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n"
        'optim_wrapper = dict(accumulative_counts=4)\n'
    )
    made = make(config, 8)
    assert made.total == 8 * 2 * 4
    first = next(i for i, rate in enumerate(made.lr) if rate == max(made.lr))
    assert first == pytest.approx(125, abs=1)


@HOOKS.register_module()
class RatesOfSteps(Hook):
    """Records the learning rate of each step of the optimizer."""

    def __init__(self, rates: list) -> None:
        self.rates = rates

    def before_train(self, runner: Any) -> None:
        def record(optimizer: Any, *_: Any) -> None:
            self.rates.append(optimizer.param_groups[0]['lr'])

        runner.optim_wrapper.optimizer.register_step_pre_hook(record)


WARMUP = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=9)
BY_EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=4)
BY_ITERATIONS = dict(type='IterBasedTrainLoop', max_iters=50)
BY_UPDATES = dict(type='LargeBatchIterTrainLoop', max_iters=20, total_batch_size=32)
LARGE = dict(type='LargeBatchTrainLoop', max_epochs=4, total_batch_size=32)


@pytest.mark.parametrize(
    'loop, accumulation, loader, schedules',
    [
        # 13 iterations in an epoch, and one without a full update at the end.
        (BY_EPOCHS, 3, {}, [WARMUP, dict(type='CosineAnnealingLR', eta_min=0.01)]),
        (BY_ITERATIONS, 4, {}, [WARMUP, dict(type='PolyLR', by_epoch=False)]),
        (BY_ITERATIONS, 1, {}, [dict(type='MultiStepLR', milestones=[1])]),
        (LARGE, 1, {}, [dict(type='PolyLR', convert_to_iter_based=True)]),
        (LARGE, 1, dict(drop_last=True), [dict(type='CosineAnnealingLR')]),
        (LARGE, 1, dict(num_batch_per_epoch=9), [dict(type='CosineAnnealingLR')]),
        (BY_EPOCHS, 1, dict(num_batch_per_epoch=9), [WARMUP, dict(type='PolyLR')]),
        (LARGE, 1, {}, [dict(type='ReduceOnPlateauLR', monitor='loss')]),
        (BY_UPDATES, 1, {}, [WARMUP, dict(type='PolyLR', by_epoch=False)]),
    ],
)
def test_rates_are_those_of_the_run(
    loop: dict, accumulation: int, loader: dict, schedules: list, tmp_path: Path
):
    cfg = cli.load_config(STOCK)
    cfg.param_scheduler = schedules
    cfg.merge_from_dict(dict(train_cfg=loop | dict(_delete_=True)))
    cfg.default_hooks.checkpoint.by_epoch = False
    settings = dict(accumulative_counts=accumulation, optimizer=dict(lr=0.05))
    cfg.merge_from_dict(dict(optim_wrapper=settings, train_dataloader=loader))
    made = plan.Plan(cfg, 1, 8, 98)
    expected: list[float] = []
    runner = make_runner(
        tmp_path,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=0.05),
            accumulative_counts=accumulation,
        ),
        images=98,
        batch_size=8,
        train_cfg=loop,
        param_scheduler=schedules,
        loader=loader,
        hooks=[dict(type='RatesOfSteps', rates=expected)],
    )
    runner.train()
    assert made.lr == pytest.approx(expected, rel=1e-12)
    assert made.updates == len(expected)
    assert made.epochs == pytest.approx(runner.iter / len(runner.train_dataloader))


def test_what_waits_for_epochs_that_never_end_is_an_error(tmp_path: Path):
    waiting = [WARMUP, dict(type='MultiStepLR', milestones=[8])]
    saving = dict(type='AtomicCheckpointHook', interval=1)
    for schedules, hook, message in (
        (waiting, saving | dict(by_epoch=False), 'MultiStepLR.*never step'),
        ([WARMUP], saving, 'AtomicCheckpointHook.*save at the end only'),
        # MMEngine's default.
        ([WARMUP], dict(type='CheckpointHook', interval=1), 'CheckpointHook.*save at'),
        ([WARMUP], saving | dict(by_epoch=False), ''),
        ([WARMUP], saving | dict(interval=-1), ''),
    ):
        cfg = cli.load_config(STOCK, dict(train_cfg=BY_UPDATES | dict(_delete_=True)))
        cfg.param_scheduler, cfg.default_hooks.checkpoint = schedules, hook
        runner = make_runner(
            tmp_path,
            dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05)),
            images=98,
            batch_size=8,
            train_cfg=BY_UPDATES,
            param_scheduler=schedules,
            checkpoint=hook,
        )
        if not message:
            plan.Plan(cfg, 1, 8, 98)
            runner.train()
            continue
        with pytest.raises(ValueError, match=message):
            plan.Plan(cfg, 1, 8, 98)
        if hook['type'] == 'CheckpointHook':
            del cfg.default_hooks.checkpoint
            with pytest.raises(ValueError, match=message):
                plan.Plan(cfg, 1, 8, 98)
        with pytest.raises(ValueError, match=message):
            runner.train()


def test_learning_rate_of_another_batch_is_a_warning():
    loop = {'train_cfg.type': 'LargeBatchTrainLoop', 'train_cfg.total_batch_size': 256}
    (warning,) = make(STOCK, 8, **loop).warnings
    # 0.02 x 256 / 16, and its square root.
    assert 'lr=0.02 is that of batch 16. For 256 the linear rule gives 0.32 ' in warning
    assert 'the square root (Adam) 0.08. If' in warning and 'max_iters' not in warning
    assert not make(STOCK, 8, **loop, **{'auto_scale_lr.base_batch_size': 256}).warnings
    assert not make(STOCK, 8).warnings  # 8 x 2 images.


def test_auto_scaling_is_planned_as_it_is_trained():
    cfg = cli.load_config(STOCK)
    cfg.train_cfg.update(type='LargeBatchTrainLoop', total_batch_size=256)
    cli.enable_auto_scale_lr(cfg)
    made = plan.Plan(cfg, 8, None, None)
    assert max(made.lr) == pytest.approx(0.32) and not made.warnings
    # MMEngine multiplies by ranks x images per rank / 16.
    made = make(STOCK, 4, 16, **{'auto_scale_lr.enable': True})
    assert max(made.lr) == pytest.approx(0.08) and not made.warnings


def test_length_of_another_batch_is_a_warning():
    options = {
        'train_cfg.type': 'LargeBatchIterTrainLoop',
        'train_cfg.total_batch_size': 256,
    }
    made = make(STOCK_ADE, 8, **options)
    # Updates of an epoch: ceil(20210 / 256) = 79.
    text = plan.describe(made)
    expected = '79 in an epoch of 20,210 images, 160,000 in all, 2,025.3 epochs\n'
    assert expected in text and not made.warnings
    scaling = {'auto_scale_lr': dict(enable=False, base_batch_size=16)}
    (warning,) = make(STOCK_ADE, 8, **options, **scaling).warnings
    assert 'and max_iters=10000 as many images as 160000.' in warning
    # MMEngine's loop: 160,000 iterations of 32 images.
    accumulates = {'optim_wrapper.accumulative_counts': 4} | scaling
    (warning,) = make(STOCK_ADE, 8, **accumulates).warnings
    assert 'For 128 the' in warning and 'max_iters=80000 as many' in warning


def test_loop_of_the_other_kind_gets_the_advice_of_the_run():
    loop = dict(type='LargeBatchTrainLoop', max_epochs=16, total_batch_size=256)
    advice = "use type='LargeBatchIterTrainLoop' with max_iters in optimizer updates"
    cfg = cli.load_config(STOCK_ADE)
    cfg.train_cfg.update(loop)
    with pytest.raises(TypeError, match=f"no argument 'max_iters'.*{advice}"):
        plan.Plan(cfg, 8, None, None)
    cfg.train_cfg = loop
    with pytest.raises(ValueError, match=f'InfiniteSampler never ends one.*{advice}'):
        plan.Plan(cfg, 8, None, None)
    cfg = cli.load_config(STOCK)
    cfg.train_cfg.update(type='LargeBatchIterTrainLoop', total_batch_size=256)
    with pytest.raises(TypeError, match="no argument 'max_epochs'.*_delete_=True"):
        plan.Plan(cfg, 8, None, None)


def test_images_are_counted_as_the_run_filters_them(tmp_path: Path):
    images = [
        dict(id=i, file_name=f'{i}.jpg', height=size, width=64)
        for i, size in enumerate([64, 64, 64, 16])
    ]
    boxes = [
        dict(id=i, image_id=i, category_id=1, bbox=[0, 0, 9, 9], area=81, iscrowd=0)
        for i in (0, 1, 3)
    ]
    categories = [dict(id=1, name='person')]
    content = dict(images=images, annotations=boxes, categories=categories)
    file = tmp_path / 'instances_train2017.json'
    file.write_text(json.dumps(content))
    settings = cli.load_config(STOCK)
    plan.use_toolbox(settings)
    dataset = settings.train_dataloader.dataset
    dataset.update(data_root='', ann_file=str(file))
    # Image 2 has no box, image 3 is smaller than 32.
    assert plan.training_images(settings) == 2
    dataset.filter_cfg = dict(filter_empty_gt=False)
    assert plan.training_images(settings) == 4
    settings.train_dataloader.dataset = dict(
        type='RepeatDataset', times=3, dataset=dataset
    )
    assert plan.training_images(settings) == 12
    settings.train_dataloader = dict(
        dataset=dict(type='ConcatDataset', datasets=[dataset, dataset]),
        sampler=dict(type='CustomSampleSizeSampler', dataset_size=[1, -1]),
    )
    assert plan.training_images(settings) == 5


def test_images_of_coco_are_known_without_the_data():
    cfg = cli.load_config(STOCK)
    dataset = cfg.train_dataloader.dataset
    plan.use_toolbox(cfg)
    dataset.data_root = 'nowhere/'
    assert plan.training_images(cfg) == 117_266
    dataset.filter_cfg.filter_empty_gt = False
    assert plan.training_images(cfg) == 118_287
    dataset.indices = 100
    with pytest.raises(ValueError, match='give it by --images N'):
        plan.training_images(cfg)


@pytest.mark.parametrize(
    'gpus, option, value, message',
    [
        (8, 'train_cfg.total_batch_size', 64, 'total_batch_size=64 is not a multiple'),
        (7, 'train_cfg.total_batch_size', 512, '= 112; the nearest multiples are 448'),
        (1, 'train_cfg.total_batch_size', 16, 'one rank and accumulative_counts=1'),
        (8, 'train_cfg.max_epochs', 2, 'begin=560, .* none of the 460 updates'),
        (8, 'default_hooks.agvm', None, 'go together'),
    ],
)
def test_impossible_plan_is_an_error(gpus: int, option: str, value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make(AGVM_512, gpus, **{option: value})


@pytest.mark.parametrize('sampler', ['DefaultSampler', 'InfiniteSampler'])
def test_update_of_more_images_than_an_epoch_is_planned_as_it_runs(
    sampler: str, tmp_path: Path
):
    loop, optimizer = BY_UPDATES | dict(max_iters=1), dict(type='SGD', lr=0.05)
    cfg = cli.load_config(STOCK)
    cfg.merge_from_dict(dict(train_cfg=loop | dict(_delete_=True), param_scheduler=[]))
    cfg.train_dataloader.sampler.type = sampler
    cfg.default_hooks.checkpoint.by_epoch = False
    runner = make_runner(
        tmp_path,
        dict(type='OptimWrapper', optimizer=optimizer),
        images=20,
        batch_size=8,
        train_cfg=loop,
        sampler=sampler,
    )
    outcomes = []
    for start in (runner.train, lambda: plan.Plan(cfg, 1, 8, 20)):
        try:
            outcomes.append(bool(start()))
        except ValueError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
    assert (outcomes[0] is True) is (sampler == 'InfiniteSampler')


REJECTED = [
    ('default_hooks.agvm.estimator', 'halfs', "Did you mean 'halves'"),
    ('default_hooks.agvm.intervall', 5, "Did you mean 'interval'"),
    ('optim_wrapper.anchor', 'backbon', "Did you mean 'backbone'"),
    ('optim_wrapper.momentum', 1.5, 'momentum must be'),
    ('optim_wrapper.modules', dict(a=['neck']), 'belong to no module'),
    ('optim_wrapper.optimizer', dict(type='PMDLAMB', lr=0.1), 'is defined for'),
    ('optim_wrapper.optimizer.typ', 'SGD', 'typ'),
    ('model.backbone.type', 'ResNot', 'ResNot'),
    ('optim_wrapper.accumulative_counts', 4, 'remove optim_wrapper.accumulative'),
    ('auto_scale_lr', dict(enable=True, base_batch_size=16), 'does not know total'),
    ('train_cfg.normalizers', 'batch', "one of 'micro_batch', 'average', 'update'"),
    ('train_cfg.total_batchsize', 4, "Did you mean 'total_batch_size'"),
    ('train_cfg.type', 'LargeBatchTrainLop', "Did you mean 'LargeBatchTrainLoop'"),
    ('train_dataloader.dataset.ann_file', 'mine.json', 'give it by --images N'),
    ('train_dataloader', None, 'the config does not train: no train_dataloader'),
    ('train_dataloader.batch_size', None, 'batch_size must be a whole number'),
]


def test_setting_that_a_run_rejects_is_an_error(subtests):
    for setting, value, message in REJECTED:
        with subtests.test(setting=setting, value=value):
            cfg = cli.load_config(str(AGVM_512), {setting: value})
            if setting == 'optim_wrapper.optimizer':  # Replaced, not merged.
                cfg.optim_wrapper.optimizer = value
            with pytest.raises(
                (KeyError, TypeError, ValueError), match=re.escape(message)
            ):
                plan.Plan(cfg, 8, None, None)


def test_mixed_precision_is_planned_without_a_gpu():
    made = make(
        AGVM_512,
        8,
        **{
            'optim_wrapper.type': 'AGVMAmpOptimWrapper',
            'optim_wrapper.loss_scale': 'dynamic',
        },
    )
    assert 'precision   mixed\n' in plan.describe(made)


def test_rate_is_that_of_the_optimizer_by_default():
    cfg = cli.load_config(str(AGVM_512))
    cfg.optim_wrapper.optimizer = dict(type='AdamW')
    made = plan.Plan(cfg, 8, None, None)
    assert max(made.lr) == pytest.approx(1e-3) and made.optimizer == 'AdamW'


def test_hook_is_found_in_either_place_and_only_once():
    def add(cfg, **hooks):
        cfg.custom_hooks = [dict(type='VarianceSyncHook', interval=7)]
        cfg.default_hooks.update(hooks)
        return cfg

    cfg = add(cli.load_config(str(AGVM_512)), agvm=None)
    assert plan.Plan(cfg, 8, None, None).schedule.interval == 7
    with pytest.raises(ValueError, match='there are 2 hooks VarianceSyncHook'):
        plan.Plan(add(cli.load_config(str(AGVM_512))), 8, None, None)


def test_doubtful_settings_are_warnings():
    (warning,) = make(AGVM_10K, 64, 16, **{'default_hooks.agvm.interval': 10}).warnings
    assert '12 measurements move mu only 31% of the distance' in warning
    assert 'lower the interval' in warning
    (warning,) = make(
        AGVM_10K,
        64,
        16,
        **{'default_hooks.agvm.end': 30, 'optim_wrapper.momentum': 0.99},
    ).warnings
    assert warning.endswith('lower momentum, or train longer')
    warnings = make(AGVM_512, 8, **{'default_hooks.agvm.begin': 100}).warnings
    assert any('within the warm-up' in warning for warning in warnings)


def silent(cfg: Config) -> Config:
    """Replace AGVM's hook by one that only measures."""
    cfg.default_hooks.agvm = dict(
        type='VarianceSyncHook', interval=10, begin=0, act=False
    )
    return cfg


def test_run_that_only_measures_is_planned():
    cfg = silent(cli.load_config(str(AGVM_512)))
    made = plan.Plan(cfg, 8, None, None)
    # It may begin at once, and mu, which it has not, is no reason for a warning.
    assert not made.warnings
    assert made.measurements == 368 and not made.hook.act
    text = plan.describe(made)
    assert 'AGVM        only measures, from update 0, every 10: 368' in text
    cfg.optim_wrapper.optimizer = dict(type='BaselineLARS', lr=0.1)
    plan.Plan(cfg, 8, None, None)
    cfg.default_hooks.agvm.act = True
    with pytest.raises(TypeError, match='is defined for'):
        plan.Plan(cfg, 8, None, None)


NOISE = NoiseScales(
    dict(backbone=1024.0, neck=math.nan, rpn_head=64.0, bbox_head=1024.0),
    512.0,
    'in FILE',
)


def test_noise_scales_say_where_mu_settles():
    made = make(AGVM_512, 8, noise=NOISE, images_per_second=1024)
    # Phi(512) is 0.8 with N = 1024, 0.2 with N = 64.
    expected = dict(backbone=1, neck=math.nan, rpn_head=2, bbox_head=1)
    assert made.settled == pytest.approx(expected, rel=1e-5, nan_ok=True)
    lines = plan.describe(made).splitlines()
    assert (
        'mu          settles at: backbone 1.00, neck not resolved, rpn_head 2.00, '
        'bbox_head 1.00'
    ) in lines
    assert 'noise scale rpn_head: 64 images' in lines
    # The recipe's 3680 updates of 512 images at 1024 images/s.
    start = lines.index('time        0.511 hours, 4.09 GPU-hours, without validation')
    assert lines[start + 1 : start + 3] == [
        '            as far at batch 256: about 5,520 updates, 3.07 GPU-hours',
        '            as far at batch 1,024: about 2,760 updates, 6.13 GPU-hours',
    ]


def test_mu_settles_with_the_anchor_and_bounds_of_the_config():
    options = {'optim_wrapper.ratio_bounds': (0.5, 2.0)}
    made = make(AGVM_512, 8, noise=NOISE, **options)
    assert made.settled['rpn_head'] == pytest.approx(2**0.5)
    made = make(AGVM_512, 8, noise=NOISE, **{'optim_wrapper.anchor': 'rpn_head'})
    assert made.settled['rpn_head'] == 1
    assert made.settled['backbone'] == pytest.approx(0.5**0.5)
    cfg = silent(cli.load_config(str(AGVM_512)))
    text = plan.describe(plan.Plan(cfg, 8, None, None, noise=NOISE))
    assert 'mu          with AGVM, would settle at: backbone 1.00, neck not' in text


def test_noise_scales_of_another_model_are_an_error():
    with pytest.raises(ValueError, match='measure this model with this split'):
        make(AGVM_10K, 64, 16, noise=NOISE)


def test_noise_scales_with_sync_bn_have_a_warning():
    (warning,) = make(AGVM_512, 8, noise=NOISE).warnings
    assert 'SyncBN' in warning and 'biased upwards' in warning
    frozen = {'model.backbone.norm_cfg.type': 'BN'}
    assert not make(AGVM_512, 8, noise=NOISE, **frozen).warnings
    (warning,) = make(AGVM_512, 8, noise=NOISE, sync_bn='torch', **frozen).warnings
    assert 'SyncBN' in warning


def test_plan_is_formatted_as_a_block():
    text = plan.describe(make(AGVM_512, 8))
    assert text.startswith(
        'batch       512 images = 8 GPU(s) x 16 images x 4 micro-batch(es)\n'
    )
    assert 'precision   float32\n' in text
    assert '0.00038 at 0, 0.38 at 460, 0.38 at 2,759, 0.038 at 2,760' in text
    assert 'gradient 166 MB, moments 166 MB; plus activations' in text


@pytest.mark.parametrize(
    'count, text',
    [(999, '999 B'), (1000, '1 kB'), (166e6, '166 MB'), (5e12, '5e+03 GB')],
)
def test_bytes_are_formatted_with_their_unit(count: float, text: str):
    assert plan.format_bytes(count) == text


def test_warns_of_noise_scales_of_other_micro_batches():
    frozen = {'model.backbone.norm_cfg.type': 'BN'}
    of_two = NOISE._replace(micro_batch=2)
    (warning,) = make(AGVM_512, 8, 16, noise=of_two, **frozen).warnings
    assert warning == (
        'the noise scales are of replicas of 2 images, but a micro-batch has 16: '
        'measure with --images-per-replica 16 if losses are divided by counts of a '
        'micro-batch (--losses)'
    )
    assert not make(AGVM_512, 8, 2, noise=of_two, **frozen).warnings
