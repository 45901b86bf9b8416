"""What the tools do to a config."""

import pytest
from mmengine.config import Config

from agvm_mm import cli


def config(**settings):
    return Config(
        dict(
            optim_wrapper=dict(
                type='AGVMOptimWrapper', optimizer=dict(type='SGD', lr=0.1)
            ),
            train_cfg=dict(max_epochs=1),
            **settings,
        )
    )


@pytest.mark.parametrize(
    'argument, own, expected',
    [
        ('given', 'own', 'given'),
        (None, 'own', 'own'),
        (None, None, 'work_dirs/some_config'),
    ],
)
def test_work_dir(argument, own, expected):
    cfg = config(work_dir=own)
    cli.set_work_dir(cfg, argument, 'configs/digits/some_config.py')
    assert cfg.work_dir == expected


@pytest.mark.parametrize(
    'argument, expected',
    [(None, (False, 'x')), ('auto', (True, None)), ('a.pth', (True, 'a.pth'))],
)
def test_resume(argument, expected):
    cfg = config(resume=False, load_from='x')
    cli.set_resume(cfg, argument)
    assert (cfg.resume, cfg.load_from) == expected


@pytest.mark.parametrize('before, after', cli.AMP_WRAPPERS.items())
def test_amp(before, after):
    cfg = config()
    cfg.optim_wrapper.type = before
    for _ in range(2):  # a config that already asks for it stays as it is
        cli.enable_amp(cfg)
        assert cfg.optim_wrapper.type == after
        assert cfg.optim_wrapper.loss_scale == 'dynamic'
    cfg.optim_wrapper.loss_scale = 512.0
    cli.enable_amp(cfg)
    assert cfg.optim_wrapper.loss_scale == 512.0


def test_amp_names_what_it_cannot_do():
    cfg = config()
    cfg.optim_wrapper.type = 'ApexOptimWrapper'
    with pytest.raises(ValueError, match="optim_wrapper.type is 'ApexOptimWrapper'"):
        cli.enable_amp(cfg)


def test_auto_scale_lr_is_left_to_mmengine():
    cfg = config(auto_scale_lr=dict(enable=False, base_batch_size=16))
    cli.enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable
    assert cfg.optim_wrapper.optimizer.lr == 0.1


def test_auto_scale_lr_goes_by_the_total_batch_size():
    cfg = config(auto_scale_lr=dict(enable=False, base_batch_size=16))
    cfg.train_cfg.total_batch_size = 64
    cli.enable_auto_scale_lr(cfg)
    assert not cfg.auto_scale_lr.enable
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.4)


def test_auto_scale_lr_counts_what_mmengine_accumulates():
    cfg = config(auto_scale_lr=dict(enable=False, base_batch_size=16))
    before = cfg.optim_wrapper.optimizer.lr
    cfg.optim_wrapper.accumulative_counts = 4
    cli.enable_auto_scale_lr(cfg)
    # MMEngine multiplies by ranks x images per rank / 16.
    assert cfg.auto_scale_lr.enable
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(4 * before)


def test_a_misspelt_config_names_the_nearest(tmp_path):
    (tmp_path / 'faster-rcnn.py').write_text('x = 1')
    assert cli.load_config(str(tmp_path / 'faster-rcnn.py')).x == 1
    with pytest.raises(FileNotFoundError, match="Did you mean 'faster-rcnn.py'"):
        cli.load_config(str(tmp_path / 'fster-rcnn.py'))
    with pytest.raises(FileNotFoundError, match='there is no config .*nowhere/x.py.$'):
        cli.load_config(str(tmp_path / 'nowhere/x.py'))


def test_auto_scale_lr_needs_a_base():
    with pytest.raises(ValueError, match='base_batch_size'):
        cli.enable_auto_scale_lr(config())


def test_sync_bn_is_reverted_everywhere():
    model = dict(
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        heads=[dict(norm_cfg=dict(type='MMSyncBN')), dict(type='FCHead')],
        stages=({'norm': dict(type='GN')},),
    )
    reverted = cli.revert_sync_bn(model)
    assert reverted.norm_cfg == dict(type='BN', requires_grad=True)
    assert reverted.heads == [dict(norm_cfg=dict(type='BN')), dict(type='FCHead')]
    assert reverted.stages == ({'norm': dict(type='GN')},)
    assert model['norm_cfg']['type'] == 'SyncBN'


def test_cpu_ranks():
    cfg = config(
        model=dict(norm_cfg=dict(type='SyncBN')),
        sync_bn='torch',
        find_unused_parameters=True,
        env_cfg=dict(dist_cfg=dict(backend='nccl')),
    )
    cli.use_cpu_ranks(cfg)
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=True,
    )
    assert cfg.model.norm_cfg.type == 'BN'
    assert cfg.sync_bn is None
    assert cfg.env_cfg.dist_cfg == dict(backend='gloo')


def test_cpu_ranks_keep_a_wrapper_of_ones_own():
    cfg = config(model=dict(), model_wrapper_cfg=dict(type='MyDDP', bucket_cap_mb=1))
    cli.use_cpu_ranks(cfg)
    assert cfg.model_wrapper_cfg.type == 'MyDDP'
    assert cfg.model_wrapper_cfg.bucket_cap_mb == 1
    assert cfg.model_wrapper_cfg.device_ids is None


def test_one_process_changes_nothing():
    cfg = config(model=dict(norm_cfg=dict(type='SyncBN')))
    cli.prepare_launcher(cfg, 'none')
    assert cfg.launcher == 'none'
    assert 'model_wrapper_cfg' not in cfg
    assert cfg.model.norm_cfg.type == 'SyncBN'


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_other_launchers_need_an_accelerator(monkeypatch, launcher):
    monkeypatch.setattr(cli, 'get_device', lambda: 'cpu')
    with pytest.raises(ValueError, match=f'only --launcher pytorch .* {launcher}'):
        cli.prepare_launcher(config(model=dict()), launcher)


def test_launcher_without_torchrun(monkeypatch):
    monkeypatch.setattr(cli, 'get_device', lambda: 'cpu')
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(RuntimeError, match='tools/dist_train.sh'):
        cli.prepare_launcher(config(model=dict()), 'pytorch')


def test_accelerators_are_left_to_mmengine(monkeypatch):
    monkeypatch.setattr(cli, 'get_device', lambda: 'cuda')
    cfg = config(model=dict(norm_cfg=dict(type='SyncBN')))
    cli.prepare_launcher(cfg, 'pytorch')
    assert cfg.launcher == 'pytorch'
    assert 'model_wrapper_cfg' not in cfg
    assert cfg.model.norm_cfg.type == 'SyncBN'


def test_drawing_and_dumping_predictions():
    cfg = config(
        default_scope='mmdet',
        default_hooks=dict(visualization=dict(type='DetVisualizationHook')),
        test_evaluator=dict(type='CocoMetric'),
    )
    cli.draw_predictions(cfg, 'pictures')
    hook = cfg.default_hooks.visualization
    assert hook.draw and hook.test_out_dir == 'pictures'
    cli.dump_predictions(cfg, 'out.pkl')
    assert [e['type'] for e in cfg.test_evaluator] == ['CocoMetric', 'DumpDetResults']
    with pytest.raises(ValueError, match='visualization'):
        cli.draw_predictions(config(), 'pictures')
