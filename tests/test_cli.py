"""Shared flags of the tools, and their changes to a config."""

from argparse import ArgumentParser
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.ops import SyncBatchNorm as MMSyncBN
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS, MODELS, RUNNERS
from mmengine.runner import Runner
from ranks import run_on_ranks
from torch import nn
from toy import ToyDetector

from agvm_mm import cli


def config(**settings: Any) -> Config:
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
    'argument, in_config, expected',
    [
        ('given', 'set', 'given'),
        (None, 'set', 'set'),
        (None, None, 'work_dirs/some_config'),
    ],
)
def test_work_dir(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argument: str | None,
    in_config: str | None,
    expected: str,
):
    path = tmp_path / 'some_config.py'
    path.write_text(f'work_dir = {in_config!r}')
    parser = ArgumentParser()
    cli.add_run_flags(parser)
    given = ['--work-dir', argument] if argument else []
    args = parser.parse_args([str(path), *given])
    monkeypatch.setenv('LOCAL_RANK', '0')
    assert cli.load_run_config(args).work_dir == expected


@pytest.mark.parametrize(
    'argument, expected',
    [(None, (False, 'x')), ('auto', (True, None)), ('a.pth', (True, 'a.pth'))],
)
def test_resume(tmp_path: Path, argument: str | None, expected: tuple):
    # MMEngine names the latest in a file, which may be lost.
    parts = ('state_dict', 'meta', 'message_hub', 'optimizer')
    torch.save(dict.fromkeys(parts, {}), tmp_path / 'epoch_1.pth')
    cfg = config(resume=False, load_from='x', work_dir=str(tmp_path))
    cli.set_resume(cfg, argument)
    assert (cfg.resume, cfg.load_from) == expected


@pytest.mark.parametrize('others', [[], ['best_mAP_epoch_1.pth', 'pretrained.pth']])
def test_resume_without_any_checkpoint_is_a_new_run(tmp_path: Path, others: list[str]):
    for name in others:  # With weights only, as `save_best` writes them.
        weights = dict(state_dict={}, meta={}, message_hub={})
        torch.save(weights, tmp_path / name)
    cfg = config(resume=False, load_from='x', work_dir=str(tmp_path))
    cli.set_resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (False, 'x')


@pytest.mark.parametrize('before, after', cli.AMP_WRAPPERS.items())
def test_amp_replaces_the_wrapper(before: str, after: str):
    cfg = config()
    cfg.optim_wrapper.type = before
    for _ in range(2):  # the second time changes nothing
        cli.enable_amp(cfg)
        assert cfg.optim_wrapper.type == after
        assert cfg.optim_wrapper.loss_scale == 'dynamic'
    cfg.optim_wrapper.loss_scale = 512.0
    cli.enable_amp(cfg)
    assert cfg.optim_wrapper.loss_scale == 512.0


def test_amp_rejects_an_unknown_wrapper():
    cfg = config()
    cfg.optim_wrapper.type = 'ApexOptimWrapper'
    with pytest.raises(ValueError, match="got optim_wrapper.type='ApexOptimWrapper'"):
        cli.enable_amp(cfg)


def test_auto_scale_lr_is_left_to_mmengine():
    cfg = config(auto_scale_lr=dict(enable=False, base_batch_size=16))
    cli.enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable
    assert cfg.optim_wrapper.optimizer.lr == 0.1


def test_auto_scale_lr_names_a_missing_lr():
    for wrapper in (dict(optimizer=dict(type='Adam')), dict(generator={}, critic={})):
        cfg = config(auto_scale_lr=dict(enable=False, base_batch_size=16))
        cfg.optim_wrapper = wrapper
        # MMEngine scales what it finds.
        cli.enable_auto_scale_lr(cfg)
        assert cfg.auto_scale_lr.enable and cfg.optim_wrapper == wrapper
        cfg.train_cfg = dict(total_batch_size=64)
        with pytest.raises(ValueError, match=r'scales optim_wrapper\.optimizer\.lr'):
            cli.enable_auto_scale_lr(cfg)


def test_auto_scale_lr_uses_the_total_batch_size():
    cfg = config(auto_scale_lr=dict(enable=False, base_batch_size=16))
    cfg.train_cfg.total_batch_size = 64
    cli.enable_auto_scale_lr(cfg)
    assert not cfg.auto_scale_lr.enable
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.4)
    # The rate is now that of the total.
    assert cfg.auto_scale_lr.base_batch_size == 64


def test_auto_scale_lr_counts_accumulated_micro_batches():
    cfg = config(auto_scale_lr=dict(enable=False, base_batch_size=16))
    before = cfg.optim_wrapper.optimizer.lr
    cfg.optim_wrapper.accumulative_counts = 4
    cli.enable_auto_scale_lr(cfg)
    # MMEngine multiplies by ranks x images per rank / 16.
    assert cfg.auto_scale_lr.enable
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(4 * before)
    # The work folder has this config.
    with pytest.raises(ValueError, match='multiplied the lr of its config by 4'):
        cli.enable_auto_scale_lr(cfg)


def test_misspelled_config_suggests_the_nearest(tmp_path: Path):
    (tmp_path / 'faster-rcnn.py').write_text('x = 1')
    assert cli.load_config(str(tmp_path / 'faster-rcnn.py')).x == 1
    with pytest.raises(FileNotFoundError, match="Did you mean 'faster-rcnn.py'"):
        cli.load_config(str(tmp_path / 'fster-rcnn.py'))
    with pytest.raises(FileNotFoundError, match='there is no config .*nowhere/x.py.$'):
        cli.load_config(str(tmp_path / 'nowhere/x.py'))


def test_auto_scale_lr_needs_a_base_batch_size():
    with pytest.raises(ValueError, match='base_batch_size'):
        cli.enable_auto_scale_lr(config())


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_other_launchers_need_an_accelerator(
    monkeypatch: pytest.MonkeyPatch, launcher: str
):
    monkeypatch.setattr(cli, 'get_device', lambda: 'cpu')
    with pytest.raises(ValueError, match=f'only --launcher pytorch .* {launcher}'):
        cli.prepare_launcher(config(model=dict()), launcher)


def test_launcher_without_torchrun_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli, 'get_device', lambda: 'cpu')
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(RuntimeError, match='tools/dist_train.sh'):
        cli.prepare_launcher(config(model=dict()), 'pytorch')


class OwnWrapper(MMDistributedDataParallel):
    """Wrapper that a config names."""


class OwnRunner(cli.DeviceRunner):
    """Runner that a config names."""


class NormedDetector(ToyDetector):
    """Network that makes the layers by itself that have no CPU version."""

    def __init__(self) -> None:
        super().__init__()
        norms = [nn.SyncBatchNorm(4), MMSyncBN(4), nn.BatchNorm2d(4)]
        self.norms = nn.ModuleList(norms).double().requires_grad_(False)


def wrap_on_rank(folder: str, **settings: Any) -> tuple:
    """Build the model of a config on this rank; return what it was made of."""
    MODELS.register_module(module=NormedDetector, force=True)
    MODEL_WRAPPERS.register_module(module=OwnWrapper, force=True)
    RUNNERS.register_module(module=OwnRunner, force=True)
    cfg = Config(dict(model=dict(type='NormedDetector'), work_dir=folder, **settings))
    cfg.launcher = 'pytorch'
    before = cfg.to_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, 'prepare_launcher', lambda cfg, launcher: None)
        runner = cli.build_runner(cfg, 'pytorch')
    assert runner.cfg.to_dict() == before
    model = runner.model
    assert not any(isinstance(m, nn.SyncBatchNorm | MMSyncBN) for m in model.modules())
    assert model.device_ids is None
    options = model.broadcast_buffers, model.find_unused_parameters
    return type(runner).__name__, type(model).__name__, *options


@pytest.mark.parametrize(
    'settings, expected',
    [
        ({}, ('DeviceRunner', 'MMDistributedDataParallel', False, False)),
        (
            dict(sync_bn='torch', find_unused_parameters=True),
            ('DeviceRunner', 'MMDistributedDataParallel', False, True),
        ),
        (
            dict(
                runner_type='OwnRunner',
                model_wrapper_cfg=dict(type='OwnWrapper', broadcast_buffers=True),
            ),
            ('OwnRunner', 'OwnWrapper', True, False),
        ),
    ],
    ids=['default', 'converted', 'own'],
)
def test_cpu_ranks_have_no_sync_bn_and_no_device(
    tmp_path: Path, settings: dict, expected: tuple
):
    function = partial(wrap_on_rank, **settings)
    assert run_on_ranks(function, 2, str(tmp_path)) == [expected, expected]


def test_accelerators_are_left_to_mmengine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli, 'get_device', lambda: 'cuda')
    cfg = config(model=dict())
    cli.prepare_launcher(cfg, 'pytorch')
    assert cfg.launcher == 'pytorch'
    asked = []
    monkeypatch.setattr(
        Runner, 'wrap_model', lambda _, settings, model: asked.append(settings) or model
    )
    runner = object.__new__(cli.DeviceRunner)
    runner._distributed = True
    model = nn.SyncBatchNorm(4)
    assert runner.wrap_model(None, model) is model and asked == [None]


def test_predictions_are_drawn_and_dumped():
    cfg = config(
        default_scope='mmdet',
        default_hooks=dict(visualization=dict(type='DetVisualizationHook')),
        test_evaluator=dict(type='CocoMetric'),
    )
    cli.draw_predictions(cfg, 'pictures')
    hook = cfg.default_hooks.visualization
    assert hook.draw and hook.test_out_dir == 'pictures'
    cli.dump_predictions(cfg, 'out.pkl')
    assert [e['type'] for e in cfg.test_evaluator] == [
        'CocoMetric',
        'mmdet.DumpDetResults',
    ]
    with pytest.raises(ValueError, match='visualization'):
        cli.draw_predictions(config(), 'pictures')


def test_run_flags_are_those_of_mmdetection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv('LOCAL_RANK', '')  # recorded, to be restored after the test
    monkeypatch.delenv('LOCAL_RANK')
    (tmp_path / 'some.py').write_text('x = dict(y=1)')
    parser = ArgumentParser()
    cli.add_run_flags(parser)
    line = [str(tmp_path / 'some.py'), '--cfg-options', 'x.y=2', 'z=[1,2]']
    args = parser.parse_args([*line, '--launcher', 'slurm', '--local-rank=3'])
    assert (args.launcher, args.work_dir) == ('slurm', None)
    cfg = cli.load_run_config(args)
    assert (cfg.x.y, cfg.z, cfg.work_dir) == (2, [1, 2], 'work_dirs/some')
    assert cli.os.environ['LOCAL_RANK'] == '3'
    # A value that torchrun has set is kept.
    monkeypatch.setenv('LOCAL_RANK', '1')
    cli.load_run_config(args)
    assert cli.os.environ['LOCAL_RANK'] == '1'
