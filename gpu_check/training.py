"""Mixed-precision training of the digits detector for some updates."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from agvm_mm import cli
from gpu_check.detectors import DIGITS

DTYPES = ('float16', 'bfloat16')
UPDATES = 12
IMAGES = 8
"""Images of a micro-batch."""
# In float16 the first updates overflow at this scale, and it grows again soon. bfloat16
# has the range of float32.
LOSS_SCALE = dict(init_scale=2.0**20, growth_interval=4)


class RecordHook(Hook):
    """Hook that keeps the values to check after each update."""

    def __init__(self) -> None:
        self.records: list[dict] = []

    def after_train_iter(
        self, runner: Runner, *_: object, outputs: Mapping[str, Tensor], **__: object
    ) -> None:
        """Record an update."""
        wrapper = runner.optim_wrapper
        self.records.append(
            dict(
                loss=float(outputs['loss']),
                variances=wrapper.agvm.variances,
                scale=wrapper.loss_scaler.get_scale(),
                skipped=wrapper.agvm.num_skipped_measurements,
            )
        )


def total_images(ranks: int) -> int:
    """Return the images of an update; one rank alone compares two micro-batches."""
    return IMAGES * max(ranks, 2)


def training_config(
    data: str, work_dir: str, dtype: str, loss_scale: Mapping
) -> Config:
    """Return the config of the training, measured at every update."""
    ranks = dist.get_world_size()
    cfg = Config.fromfile(DIGITS)
    for part in ('dataloader', 'cfg', 'evaluator'):
        cfg[f'val_{part}'] = cfg[f'test_{part}'] = None
    cfg.param_scheduler = cfg.visualizer = cfg.default_hooks.checkpoint = None
    del cfg.default_hooks.visualization
    cfg.update(work_dir=work_dir, env_cfg=dict(), log_level='WARNING')
    cfg.model.backbone.init_cfg = None
    cfg.train_dataloader.batch_size = IMAGES
    cfg.train_dataloader.dataset.data_root = data
    cfg.train_cfg.update(max_epochs=1, total_batch_size=total_images(ranks))
    cfg.optim_wrapper.optimizer.lr = 0.002  # That of the middle of the warm-up.
    cli.enable_amp(cfg)
    cfg.optim_wrapper.update(dtype=dtype, loss_scale=dict(loss_scale))
    # Overflows at the beginning are expected, and none of them ends the training.
    cfg.default_hooks.agvm.update(begin=0, max_rejected=None)
    if ranks > 1:
        cfg.launcher = 'pytorch'
    return cfg


def train_digits(
    data: str, work_dir: str, dtype: str, loss_scale: Mapping = LOSS_SCALE
) -> list[dict]:
    """Train on this rank, and return the record of each update."""
    cfg = training_config(data, work_dir, dtype, loss_scale)
    runner = cli.DeviceRunner.from_cfg(cfg)
    recorder = RecordHook()
    runner.register_hook(recorder)
    runner.train()
    bad = [
        name
        for name, parameter in runner.model.named_parameters()
        if not torch.isfinite(parameter).all()
    ]
    if bad:
        raise FloatingPointError(f'parameters are not finite: {", ".join(bad)}')
    return recorder.records


def judge_training(
    records: Sequence[Mapping], updates: int, first_scale: float
) -> list[str]:
    """Return the problems in the records of a training of so many updates."""
    problems = []
    if len(records) != updates:
        problems.append(f'{len(records)} updates instead of {updates}')
    for update, record in enumerate(records):
        values = [record['loss'], *record['variances'].values()]
        if not all(map(math.isfinite, values)):
            problems.append(f'update {update}: loss or Phi is not finite')
    scales = [first_scale, *(record['scale'] for record in records)]
    overflows = sum(b < a for a, b in zip(scales, scales[1:], strict=False))
    skipped = records[-1]['skipped'] if records else 0
    if overflows != skipped:
        problems.append(
            f'the loss scale fell at {overflows} updates, but {skipped} measurements '
            'were skipped'
        )
    if skipped == len(records):
        problems.append('no measurement could be used')
    return problems
