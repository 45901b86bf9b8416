"""Configs in pure Python, in which types are classes."""

from pathlib import Path
from typing import Any

import pytest
from mmcv.cnn import build_norm_layer
from mmdet.models.task_modules import BboxOverlaps2D
from mmdet.registry import TASK_UTILS
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import DefaultScope
from ranks import run_on_ranks
from torch import nn
from toy import ToyDetector

from agvm_mm import cli
from agvm_mm.report import plan
from agvm_mm.report.gradient_noise.replicas import build_model, start_ranks
from agvm_mm.validation import package_of, resolve_type, type_name

CONFIG = """
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, LoggerHook
from runners import ImageDataset
from test_pure_python import NormedDetector
from torch.nn import SyncBatchNorm
from torch.optim import SGD
from torch.utils.data import default_collate

from agvm_mm import AGVMOptimWrapper, LargeBatchTrainLoop, VarianceSyncHook

model = dict(
    type=NormedDetector, norms=[dict(type=SyncBatchNorm), dict(type='SyncBN')]
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type=ImageDataset, images=16),
    sampler=dict(type=DefaultSampler, shuffle=True),
    collate_fn=dict(type=default_collate),
)
optim_wrapper = dict(type=AGVMOptimWrapper, optimizer=dict(type=SGD, lr=0.05))
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=1),
    checkpoint=dict(type=CheckpointHook, interval=-1),
    agvm=dict(type=VarianceSyncHook, interval=1),
)
train_cfg = dict(type=LargeBatchTrainLoop, max_epochs=1, total_batch_size=8)
default_scope = None
"""


class NormedDetector(ToyDetector):
    """Network that builds norms from their settings and does not use them."""

    def __init__(self, norms: list[dict]) -> None:
        super().__init__()
        layers = [build_norm_layer(settings, 8)[1] for settings in norms]
        self.norms = nn.ModuleList(layers).requires_grad_(False)
        # By name, as MaxIoUAssigner.
        TASK_UTILS.build(dict(type=BboxOverlaps2D.__name__))


def load(folder: Path, options: dict[str, Any] | None = None) -> Config:
    path = folder / 'config.py'
    path.write_text(CONFIG)
    cfg = cli.load_config(str(path), options)
    cfg.work_dir = str(folder)
    return cfg


def train_on_ranks(folder: str) -> tuple:
    cfg = Config.fromfile(f'{folder}/config.py')
    cfg.work_dir = folder
    cfg.launcher = 'pytorch'
    runner = cli.DeviceRunner.from_cfg(cfg)
    runner.train()
    norms, agvm = runner.model.module.norms, runner.optim_wrapper.agvm
    return [isinstance(norm, nn.SyncBatchNorm) for norm in norms], agvm.num_measurements


def test_config_trains_on_cpu_ranks_without_sync_bn(tmp_path: Path):
    load(tmp_path)
    for synchronized, measurements in run_on_ranks(train_on_ranks, 2, str(tmp_path)):
        assert synchronized == [False, False]
        assert measurements == 2


def test_command_line_settings_and_amp(tmp_path: Path):
    cfg = load(tmp_path, {'optim_wrapper.optimizer.lr': 0.1})
    cli.enable_amp(cfg)
    assert cfg.optim_wrapper.optimizer.lr == 0.1
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    assert 'AGVMAmpOptimWrapper' in cfg.pretty_text
    cli.enable_amp(cfg)
    assert cfg.optim_wrapper.type == 'AGVMAmpOptimWrapper'


def test_plan_reads_classes(tmp_path: Path):
    with DefaultScope.overwrite_default_scope('mmdet'):  # One of MMEngine hides it.
        made = plan.Plan(load(tmp_path), 2, None, 16)
    assert (made.optimizer, made.precision, made.updates) == ('SGD', 'float32', 2)
    assert list(made.modules) == ['backbone', 'neck', 'bbox_head', 'mask_head']
    assert made.schedule.interval == 1
    cfg = load(tmp_path)
    cli.enable_amp(cfg)
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert plan.Plan(cfg, 2, None, 16).precision == 'mixed'
        start_ranks(cfg, 'none')  # tools/noise_scale.py
        build_model(cfg)


def test_predictions_are_drawn_and_dumped_by_classes():
    from mmdet.evaluation import CocoMetric
    from mmseg.engine import SegVisualizationHook

    cfg = Config(
        dict(
            work_dir='work',
            visualizer=dict(),
            default_hooks=dict(visualization=dict(type=SegVisualizationHook)),
            test_evaluator=dict(type=CocoMetric),
        )
    )
    cli.draw_predictions(cfg, 'pictures')
    assert cfg.visualizer.save_dir == 'work/pictures'
    cli.dump_predictions(cfg, 'out.pkl')
    assert cfg.test_evaluator[-1]['type'] == 'mmdet.DumpDetResults'


@pytest.mark.parametrize(
    'kind, name, package',
    [
        ('BN', 'BN', ''),
        ('mmdet.CocoMetric', 'CocoMetric', 'mmdet'),
        ('mmengine::OptimWrapper', 'OptimWrapper', 'mmengine'),
        ('torch.optim.SGD', 'SGD', 'torch'),
        (AmpOptimWrapper, 'AmpOptimWrapper', 'mmengine'),
    ],
)
def test_name_and_package_of_a_type(kind: Any, name: str, package: str):
    assert (type_name(kind), package_of(kind)) == (name, package)


def test_types_are_resolved_as_mmengine_does():
    from mmengine.registry import OPTIM_WRAPPERS

    for kind in (
        'AmpOptimWrapper',
        'mmengine.AmpOptimWrapper',
        'mmengine.optim.AmpOptimWrapper',
        AmpOptimWrapper,
    ):
        assert resolve_type(kind, OPTIM_WRAPPERS) is AmpOptimWrapper
    assert resolve_type('AmOptimWrapper', OPTIM_WRAPPERS) is None
    assert resolve_type(None, OPTIM_WRAPPERS) is None
