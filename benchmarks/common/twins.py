"""Trainings of the digits twins at any batch, learning rate and seed.

All of a model's runs have the same scenes and micro-batches; they differ in the
optimizer wrapper and AGVM's hook only.
"""

import json
import math
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mmcv.ops import RoIAlign
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from agvm_mm import cli
from agvm_mm.report import logs
from agvm_mm.training.atomic import replaced_when_whole
from agvm_mm.validation import check_choice
from benchmarks.paper.runs import last_result
from benchmarks.paper.tables import METRICS
from common import report

TWINS = report.ROOT / 'configs/digits'
SCENES = 16384
# Half the side of the twins' scenes: both models learn from them, in less time.
IMAGE_SIZE = 48
SCENES_FOLDER = f'study{IMAGE_SIZE}'
EPOCHS = {'sem-fpn': 1, 'faster-rcnn': 2}
# Images of a micro-batch, at every batch size: batch normalization depends on it.
MICRO_BATCH = 32
FACTOR = 1.5
# Parts of the updates: the warm-up, AGVM's begin, the drops of the learning rate.
WARMUP, BEGIN, DROPS = 0.15, 0.2, (0.7, 0.9)
# Where the search starts at batch 256; it grows with the square root of the batch.
START = {
    'sem-fpn': {'adamw': 0.006, 'sgd': 0.1, 'lamb': 0.01, 'pmd-lamb': 0.01},
    'faster-rcnn': {'adamw': 0.0015, 'sgd': 0.04, 'lamb': 0.01, 'pmd-lamb': 0.01},
}
METRIC = {'sem-fpn': 'mIoU', 'faster-rcnn': 'bbox_mAP'}
# Names of variants, with a space before each word.
VARIANT = re.compile(
    r'( agvm(?P<settings>( \w+=\S+)*))?'
    r'( x(?P<multiplier>\d+(\.\d+)?)( (?P<module>\w+))?)?'
)
SETTINGS = ('momentum', 'interval', 'ratio_bounds', 'estimator', 'anchor')


def parse_variant(text: str) -> tuple[dict | None, float, str | None]:
    """Return what a variant adds to an optimizer, from its name.

    It is '' for the optimizer alone; 'agvm', with settings as in 'agvm momentum=0.97';
    a multiplier, 'x2' for all modules but the backbone or 'x2 neck' for one; or a
    multiplier after AGVM, 'agvm x2 neck'.

    Returns:
        AGVM's settings, None for training without it; the fixed multiplier of the
        learning rate; and the module that has it, None for all but the backbone.

    Raises:
        ValueError: If it is none of these, or a setting is unknown.
    """
    found = VARIANT.fullmatch(text and f' {text}')
    multiplier = float(found['multiplier'] or 1) if found else 0
    if multiplier == 0:
        raise ValueError(
            "--variants must be 'agvm', with settings as in 'agvm momentum=0.97', a "
            "multiplier as 'x1.4' or 'x2 neck', or both as 'agvm x2 neck', got "
            f'{text!r}'
        )
    options = None
    if found['settings'] is not None:
        options = dict(momentum=0.9, interval=1, estimator='replicas')
        for word in found['settings'].split():
            key, _, value = word.partition('=')
            check_choice('--variants', key, SETTINGS)
            try:
                options[key] = json.loads(value)
            except json.JSONDecodeError:
                options[key] = value
    return options, multiplier, found['module']


@dataclass(frozen=True, order=True)
class Run:
    """One training.

    Args:
        model: A key of ``START``.
        plain: Optimizer, a key of ``START[model]``.
        variant: Addition to the optimizer, as for ``parse_variant``.
        batch_size: Images of an update.
        step: Learning rate, in factors of 1.5 from the start of the search.
        seed: Seed of the training; the scenes are the same for all.
        epochs: Passes over the scenes.
        scenes: Training scenes: the first of those that are written.
    """

    model: str
    plain: str
    variant: str
    batch_size: int
    step: int
    seed: int
    epochs: int
    scenes: int

    @property
    def method(self) -> str:
        """Name of the method, as in configs; 'adamw-x1.4' for a fixed multiplier."""
        if self.variant.startswith('agvm'):
            return f'agvm-{self.plain}{self.variant.removeprefix("agvm")}'
        return '-'.join(filter(None, (self.plain, self.variant)))

    @property
    def lr(self) -> float:
        """Learning rate of the backbone."""
        start = START[self.model][self.plain] * math.sqrt(self.batch_size / 256)
        return float(f'{start * FACTOR**self.step:.3g}')

    @property
    def name(self) -> str:
        """Name of the files of this run."""
        return (
            f'{self.model}_{self.method}_b{self.batch_size}_lr{self.lr:g}'
            f'_{self.scenes}x{self.epochs}_seed{self.seed}'
        )


def run_config(run: Run, data: Path) -> Config:
    """Return the config of a run on a folder of scenes and the backbone."""
    (path,) = TWINS.glob(f'{run.model}_*_sgd_b256_*.py')
    (recipe,) = TWINS.glob(f'faster-rcnn_*_{run.plain}_b256_*.py')
    cfg = Config.fromfile(path)
    wrapper = Config.fromfile(recipe).optim_wrapper
    wrapper.clip_grad = cfg.optim_wrapper.clip_grad
    wrapper.optimizer.lr = run.lr
    updates = run.epochs * math.ceil(run.scenes / run.batch_size)
    warmup, begin, *drops = (
        max(1, round(part * updates)) for part in (WARMUP, BEGIN, *DROPS)
    )
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=warmup),
        dict(type='MultiStepLR', by_epoch=False, milestones=drops, gamma=0.1),
    ]
    options, multiplier, module = parse_variant(run.variant)
    if options is not None:
        wrapper.type = 'AGVMOptimWrapper'
        for key in {'momentum', 'ratio_bounds', 'anchor'} & options.keys():
            wrapper[key] = options.pop(key)
        cfg.default_hooks.agvm = dict(type='VarianceSyncHook', begin=begin, **options)
    if multiplier != 1:
        if module is None:
            wrapper.optimizer.lr *= multiplier
            module, multiplier = 'backbone', 1 / multiplier
        wrapper.paramwise_cfg = dict(
            custom_keys={f'{module}.': dict(lr_mult=multiplier)}
        )
    cfg.optim_wrapper = wrapper
    cfg.merge_from_dict(
        {
            'train_dataloader.dataset.indices': run.scenes,
            'train_cfg.max_epochs': run.epochs,
            'train_cfg.val_interval': run.epochs,
            'train_cfg.total_batch_size': run.batch_size,
            'randomness.seed': run.seed,
            'default_hooks.logger.interval': 1,
            'log_level': 'WARNING',
            'model.backbone.init_cfg.checkpoint': str(backbone_file(data)),
        }
    )
    # Not part of the training
    for name in ('checkpoint', 'visualization', 'sync_buffers'):
        del cfg.default_hooks[name]
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size = MICRO_BATCH
        loader.dataset.update(data_root=f'{data}/', cache=True)
    # Samples are copied for each micro-batch, with all that is packed with them.
    cfg.train_dataloader.dataset.pipeline[-1].meta_keys = ('img_shape',)
    size = IMAGE_SIZE, IMAGE_SIZE
    if 'ann_file' in cfg.val_evaluator:
        cfg.val_evaluator.ann_file = str(data / cfg.val_dataloader.dataset.ann_file)
        cfg.val_dataloader.dataset.pipeline[1].scale = size
    else:
        cfg.model.data_preprocessor.size = size
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    return cfg


def backbone_file(data: Path) -> Path:
    """Return the checkpoint of the backbone."""
    return data / 'resnet18_w16.pth'


def result_file(run: Run, work_dirs: Path) -> Path:
    """Return the file with the result of a run."""
    return work_dirs / f'{run.name.replace(" ", "_")}.json'


def name_run(cfg: Config, folder: Path) -> None:
    """Set the work folder of a run, and a name that no other run has.

    MMEngine keeps loggers and visualizers by name; a process trains several runs.
    """
    cfg.work_dir = cfg.experiment_name = cfg.visualizer.name = str(folder)


def use_fast_layout(runner: Runner) -> None:
    """Store weights with the channels last: feature maps then are as well.

    Convolutions of few channels are faster that way. mmcv's RoIAlign takes any layout
    for channels first, without an error, so its input is copied to that.
    """

    def channels_first(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        features, *rest = args
        return features.contiguous(), *rest

    runner.model.to(memory_format=torch.channels_last)
    for module in runner.model.modules():
        if isinstance(module, RoIAlign):
            module.register_forward_pre_hook(channels_first)


class StopAtDivergence(Hook):
    """Hook that ends a training whose loss or parameters are not finite.

    Heads need not survive such parameters, and metrics of them mean nothing.
    """

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object, outputs: dict
    ) -> None:
        """Raise FloatingPointError if the loss or a parameter is not finite."""
        values = {'loss': outputs['loss'], **dict(runner.model.named_parameters())}
        for name, value in values.items():
            if not value.isfinite().all():
                raise FloatingPointError(
                    f'{name} is not finite after update {batch_idx + 1}'
                )


def check_module(model: nn.Module, module: str | None) -> None:
    """Check that a multiplied module has parameters.

    Raises:
        ValueError: If none has it in its name: the multiplier would change nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    if module and not any(f'{module}.' in name for name in names):
        found = sorted({name.split('.')[0] for name in names})
        raise ValueError(
            f'--variants: the model has no module {module!r}, but {", ".join(found)}'
        )


def agvm_medians(updates: Sequence[dict]) -> dict[str, float]:
    """Return the medians of AGVM's log values over the updates with finite ones."""
    values: dict[str, list[float]] = {}
    for record in updates:
        for key, value in record.items():
            if key.startswith('agvm/') and math.isfinite(value):
                values.setdefault(key, []).append(value)
    return {key: statistics.median(found) for key, found in values.items()}


def train(run: Run, data: Path, work_dirs: Path) -> Run:
    """Train a run in this process, write its result, and return it."""
    torch.set_num_threads(1)
    cfg = run_config(run, data)
    file = result_file(run, work_dirs)
    folder = file.with_suffix('') / str(time.time_ns())
    name_run(cfg, folder)
    start = time.process_time()
    runner = cli.build_runner(cfg, 'none')
    *_, module = parse_variant(run.variant)
    check_module(runner.model, module)
    use_fast_layout(runner)
    runner.register_hook(StopAtDivergence())
    result = dict(run=asdict(run), method=run.method, lr=run.lr)
    try:
        runner.train()
    except FloatingPointError as error:
        result |= dict(value=None, diverged=str(error))
    else:
        key, factor = METRICS[METRIC[run.model]]
        value = last_result(folder, key) * factor
        result |= dict(value=round(value, 2), agvm=agvm_medians(logs.read_run(folder)))
    result['cpu_seconds'] = round(time.process_time() - start, 1)
    result['processor'] = report.processor_name()
    with replaced_when_whole(file) as path:
        path.write_text(json.dumps(result, indent=1) + '\n')
    return run
