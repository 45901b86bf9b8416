"""Write the config zoo: one leaf for each run of the paper, and the metafiles.

The output is checked in, and a test compares the two. ``configs/_base_`` and
``configs/digits`` are written by hand.
"""

import argparse
import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import yaml

from agvm_mm.report.plan import TRAIN_IMAGES
from benchmarks.paper.tables import METHODS, ConfigName, paper_cells

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 88
# The authors count 460 updates per epoch at batch 256; by the images it is 459.
RELEASED_WARMUP = {256: 920}
# Learning rates of the authors' released recipe that do not follow the rule.
RELEASED_LR = {('faster_rcnn', 'agvm-sgd', 512): '0.38'}
MILESTONES = {12: [8, 11], 14: [10, 12], 16: [12, 14]}
# Updates at batch 32 on ADE20K. Every batch gets as many images.
ADE20K_UPDATES_AT_32 = 160_000
# Settings of the optimizer that differ from the SGD or AdamW of ``_base_``.
OPTIMIZERS = {
    'lars': dict(trust_coefficient=0.001),
    'lamb': dict(weight_decay=0.01),
    'pmd-lamb': dict(weight_decay=0.01, moment_decay=0.1),
}
TO_1536 = (32, 256, 512, 1024, 1536, 10240)
TO_1024 = (32, 256, 512, 1024, 10240)
TO_2048 = (32, 256, 512, 1024, 2048, 10240)
# Model, methods, batches and epochs. On ADE20K the batch gives the length.
RUNS = (
    ('faster-rcnn_r50_fpn', 'sgd agvm-sgd', TO_1536, 16),
    ('faster-rcnn_r50_fpn', 'adamw lamb pmd-lamb agvm-adamw', TO_1536, 12),
    ('faster-rcnn_swin-t_fpn', 'adamw agvm-adamw', (32, 512), 12),
    ('mask-rcnn_r50_fpn', 'sgd lars agvm-sgd', TO_1024, 14),
    # The authors' open-source re-run has 16 epochs instead of 14.
    ('mask-rcnn_r50_fpn', 'sgd', (32, 256, 512), 16),
    ('mask-rcnn_r50_fpn', 'agvm-sgd', (256, 512), 16),
    ('mask-rcnn_swin-t_fpn', 'adamw agvm-adamw', (32, 512), 12),
    ('panoptic-fpn_r50_fpn', 'sgd agvm-sgd', TO_1024, 14),
    ('upernet_r50', 'sgd agvm-sgd', TO_2048, None),
    ('upernet_swin-t', 'adamw agvm-adamw', TO_2048, None),
    ('sem-fpn_r50', 'sgd agvm-sgd', (32, 512, 1024, 2048), None),
    ('retinanet_r18_fpn', 'adamw pmd-lamb agvm-adamw', (32, 4096, 10240), 12),
    ('cascade-mask-rcnn_swin-1b_fpn', 'agvm-adamw', (960,), 12),
)


class Arch(NamedTuple):
    """Architecture: one folder of configs, with its title and task and its paper."""

    title: str
    task: str
    paper: str
    url: str


FPN_PAPER = 'Panoptic Feature Pyramid Networks', 'https://arxiv.org/abs/1901.02446'
SEMANTIC = 'Semantic Segmentation'
ARCHS = dict(
    faster_rcnn=Arch(
        'Faster R-CNN',
        'Object Detection',
        'Faster R-CNN: Towards Real-Time Object Detection with Region Proposal '
        'Networks',
        'https://arxiv.org/abs/1506.01497',
    ),
    mask_rcnn=Arch(
        'Mask R-CNN',
        'Instance Segmentation',
        'Mask R-CNN',
        'https://arxiv.org/abs/1703.06870',
    ),
    panoptic_fpn=Arch('Panoptic FPN', 'Panoptic Segmentation', *FPN_PAPER),
    upernet=Arch(
        'UperNet',
        SEMANTIC,
        'Unified Perceptual Parsing for Scene Understanding',
        'https://arxiv.org/abs/1807.10221',
    ),
    sem_fpn=Arch('Semantic FPN', SEMANTIC, *FPN_PAPER),
    retinanet=Arch(
        'RetinaNet',
        'Object Detection',
        'Focal Loss for Dense Object Detection',
        'https://arxiv.org/abs/1708.02002',
    ),
    cascade_mask_rcnn=Arch(
        'Cascade Mask R-CNN',
        'Instance Segmentation',
        'Cascade R-CNN: High Quality Object Detection and Instance Segmentation',
        'https://arxiv.org/abs/1906.09756',
    ),
)


class Code(str):
    """Expression that a config shows as it is."""


class Run:
    """One leaf, and the numbers that follow from its batch.

    Args:
        model: File under ``_base_/models``.
        method: A key of ``METHODS``.
        batch: Images of one update.
        epochs: Epochs on COCO, None on ADE20K.

    Attributes:
        folder: Folder of the config, a key of ``ARCHS``.
        dataset: A key of ``TRAIN_IMAGES``.
        is_agvm: True if AGVM changes the learning rates.
        epoch: Updates of one epoch, the last of them perhaps on fewer images.
        updates: Updates of the whole run.
        warmup: Updates of warm-up, 2 epochs of COCO or 20 of ADE20K.
        gap: Updates from the end of the warm-up to AGVM's first: the authors' 100, but
            at most half an epoch of COCO or one of ADE20K.
        begin: AGVM's first update.
        images_per_rank: Images of a micro-batch; divides the batch. 16 is the authors'
            released number, 2 at 1536 that of the paper's 768 GPUs. The others are our
            choice for GPUs with 80 GB.
        path: Path of the file from the root of the repository.
    """

    def __init__(self, model: str, method: str, batch: int, epochs: int | None) -> None:
        self.model, self.method, self.batch, self.epochs = model, method, batch, epochs
        self.folder = model.split('_')[0].replace('-', '_')
        self.is_agvm = method.startswith('agvm-')
        self.dataset = 'coco' if epochs else 'ade20k'
        self.epoch = math.ceil(TRAIN_IMAGES[self.dataset] / batch)
        length, dataset = f'{epochs}e', self.dataset
        if epochs:
            self.updates = epochs * self.epoch
            self.warmup = RELEASED_WARMUP.get(batch, 2 * self.epoch)
            self.gap = min(100, math.ceil(self.epoch / 2))
        else:
            self.updates = ADE20K_UPDATES_AT_32 * 32 // batch
            self.warmup = math.ceil(20 * TRAIN_IMAGES['ade20k'] / batch)
            self.gap = min(100, self.epoch)
            thousands, rest = divmod(self.updates, 1000)
            length = f'{self.updates}iters' if rest else f'{thousands}k'
            dataset += '-512x512'
        self.begin = self.warmup + self.gap
        self.images_per_rank = 4 if batch == 32 or 'swin' in model else 16
        if batch == 1536 or 'swin-1b' in model:
            self.images_per_rank = 2
        name = ConfigName(model, method, batch, length, dataset)
        self.path = f'configs/{self.folder}/{name}.py'


ALL_RUNS = {
    run.path: run
    for model, methods, batches, epochs in RUNS
    for method in methods.split()
    for run in (Run(model, method, batch, epochs) for batch in batches)
}


def plain_optimizer(run: Run) -> str:
    """Return the method that a run's method changes: SGD or AdamW alone."""
    own = METHODS[run.method].optimizer
    return 'sgd' if own in ('SGD', 'BaselineLARS') else 'adamw'


def learning_rate(run: Run) -> tuple[str, str]:
    """Return the learning rate as an expression, and the rule that gives it."""
    batch = run.batch
    linear = f'0.02 * {batch} / 16'
    if run.method == 'sgd':
        return linear, 'linear from 0.02 at 16'
    if run.method == 'agvm-sgd':
        by_rule = linear if batch <= 128 else f'0.16 * ({batch} / 128) ** 0.5'
        rate = RELEASED_LR.get((run.folder, run.method, batch), by_rule)
        return rate, 'linear from 0.02 at 16 to 128, then square root'
    if run.method == 'lars':
        return f'0.075 * {batch}**0.5', '0.075 times the square root'
    base, at = ('0.005', 512) if 'lamb' in run.method else ('1e-4', 16)
    return f'{base} * ({batch} / {at}) ** 0.5', f'square root from {base} at {at}'


def description(run: Run) -> str:
    """Return the comment at the top of a leaf."""
    text = f'{METHODS[run.method].title} at total batch {run.batch}. '
    released = run.method == 'agvm-sgd' and run.batch in (256, 512)
    if released and run.folder in ('faster_rcnn', 'mask_rcnn'):
        text += "Numbers of the authors' released recipe"
        if run.epochs == 14:
            text += ", at the 14 epochs of the paper's table"
    else:
        text += f'Ours: lr {learning_rate(run)[1]}'
        if run.epochs and run.batch in RELEASED_WARMUP:
            text += f"; the authors' {run.warmup} updates of warm-up"
        if run.is_agvm:
            text += f'; AGVM begins {run.gap} updates after the warm-up'
        if run.method == 'pmd-lamb':
            text += '; the moments decay every epoch, or every 1000 updates'
    lines = textwrap.wrap(f'{text}.', WIDTH - 2, break_on_hyphens=False)
    return '\n'.join(f'# {line}' for line in lines)


def bases(run: Run) -> list[str]:
    """Return the files that a leaf builds on if there is no run to change."""
    schedule = f'{run.dataset}_{plain_optimizer(run)}'
    if 'swin' in run.model:
        schedule += '_swin'
    return [f'../_base_/models/{run.model}.py', f'../_base_/schedules/{schedule}.py']


def optim_wrapper(run: Run) -> dict:
    """Return the settings of the optimizer wrapper that differ from ``_base_``."""
    optimizer = dict(lr=Code(learning_rate(run)[0]))
    if run.method in OPTIMIZERS:
        optimizer = dict(type=METHODS[run.method].optimizer) | optimizer
        optimizer |= OPTIMIZERS[run.method]
    if run.method == 'pmd-lamb':
        # The second moment remembers about 1000 updates.
        optimizer['period'] = min(run.epoch, 1000)
    if not run.is_agvm:
        return dict(optimizer=optimizer)
    wrapper = dict(type='AGVMOptimWrapper', optimizer=optimizer)
    if run.method == 'agvm-sgd' and run.batch >= 256:
        wrapper['clip_grad'] = dict(max_norm=1.0)
        wrapper['clip_window'] = (run.warmup - run.gap, run.begin)
    if run.folder == 'cascade_mask_rcnn':
        # The authors' modules. By default, each stage of a cascade is one.
        wrapper['modules'] = {name: [name] for name in ('backbone', 'neck', 'rpn_head')}
        wrapper['modules'] |= dict(
            bbox_head=['roi_head.bbox_head'], mask_head=['roi_head.mask_head']
        )
    return wrapper


def param_scheduler(run: Run) -> list[dict] | None:
    """Return the schedule of the learning rate, None for that of ``_base_``."""
    warmup = dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False)
    warmup |= dict(end=run.warmup)
    if not run.epochs:
        decay = dict(type='PolyLR', by_epoch=False, begin=run.warmup, end=run.updates)
        return [warmup, decay | dict(power=0.9, eta_min=0.0)]
    decay = dict(type='MultiStepLR', by_epoch=True, end=run.epochs)
    decay |= dict(milestones=MILESTONES[run.epochs], gamma=0.1)
    if run.batch in RELEASED_WARMUP:
        return [warmup, decay]
    return [Code('_base_.param_scheduler[0]'), decay] if run.epochs != 12 else None


def variance_hook(run: Run) -> dict:
    """Return the hook that measures. At every update this must cost nothing."""
    interval = 10 if run.batch <= 1024 else 5 if run.batch <= 2048 else 1
    hook = dict(type='VarianceSyncHook', interval=interval, begin=run.begin)
    return hook if interval > 1 else dict(hook, estimator='replicas')


def loop_and_hooks(run: Run) -> tuple[dict, dict]:
    """Return what differs from ``_base_`` in ``train_cfg`` and ``default_hooks``."""
    loop, hooks = {}, {}
    if run.epochs:
        every = 1 if run.batch <= 1024 else 4
        log = 50 if run.epoch >= 200 else 10 if run.epoch >= 50 else 1
        if run.epochs != 12:
            loop['max_epochs'] = run.epochs
    else:
        every = run.updates // 10
        log = 50 if run.updates >= 5000 else 10
        loop['max_iters'] = run.updates
    if every > 1:
        loop['val_interval'] = every
        hooks['checkpoint'] = dict(interval=every)
    if log != 50:
        hooks['logger'] = dict(interval=log)
    if run.is_agvm:
        hooks['agvm'] = variance_hook(run)
    return loop | dict(total_batch_size=run.batch), hooks


def leaf_text(run: Run) -> str:
    """Return the text of one config, not formatted yet.

    It has what its method changes in the run with the optimizer alone.
    """
    settings = all_settings(run)
    plain = Run(run.model, plain_optimizer(run), run.batch, run.epochs)
    if plain.path != run.path and plain.path in ALL_RUNS:
        settings = changes(settings, all_settings(plain))
        settings = dict(_base_=f'./{Path(plain.path).name}') | settings
    else:
        settings = dict(_base_=bases(run)) | settings
    lines = [
        f'{name} = {expression(value)}' for name, value in settings.items() if value
    ]
    return '\n'.join([description(run), *lines, ''])


def all_settings(run: Run) -> dict:
    """Return the settings of a run that differ from ``_base_``."""
    train_cfg, default_hooks = loop_and_hooks(run)
    return dict(
        train_cfg=train_cfg,
        train_dataloader=dict(batch_size=run.images_per_rank),
        optim_wrapper=optim_wrapper(run),
        param_scheduler=param_scheduler(run),
        default_hooks=default_hooks,
    )


def changes(settings: dict, plain: dict) -> dict:
    """Return the settings that are not in others, as MMEngine merges dicts."""
    return {
        key: changes(value, plain[key]) if isinstance(plain.get(key), dict) else value
        for key, value in settings.items()
        if value != plain.get(key)
    }


def expression(value: object) -> str:
    """Return the expression of a value, with ``dict(...)`` for dicts."""
    if isinstance(value, dict):
        items = (f'{key}={expression(item)}' for key, item in value.items())
        return f'dict({", ".join(items)})'
    if isinstance(value, list):
        return f'[{", ".join(map(expression, value))}]'
    return value if isinstance(value, Code) else repr(value)


def metadata(run: Run, figures: list[str]) -> dict:
    """Return the metadata of a run in its metafile.

    Figures are strings: MIM takes a list of dicts for inference times.
    """
    found = {
        'Task': ARCHS[run.folder].task,
        'Total Batch Size': run.batch,
        'Updates': run.updates,
        'Images per GPU': run.images_per_rank,
    }
    if run.epochs:
        found['Epochs'] = run.epochs
    if run.folder == 'cascade_mask_rcnn':
        found['Note'] = (
            "The paper's one-billion-parameter detector is UniNet-G, which "
            'MMDetection does not have; its figures are not those of this model.'
        )
    elif figures:
        found['Figures of the AGVM paper, not measured here'] = figures
    return found


def metafile_text(folder: str, runs: list[Run], figures: dict[str, list]) -> str:
    """Return a metafile as MIM reads it.

    It has no ``Results``, since we have measured none. The paper's figures have a key
    of their own.
    """
    arch = ARCHS[folder]
    collection = dict(
        Name=f'{arch.title} with AGVM',
        Metadata={
            'Training Data': 'ADE20K' if arch.task == SEMANTIC else 'COCO',
            'Training Techniques': sorted({METHODS[run.method].title for run in runs}),
            'Architecture': [arch.title],
        },
        Paper=dict(Title=arch.paper, URL=arch.url),
    )
    models = [
        {
            'Name': Path(run.path).stem,
            'In Collection': collection['Name'],
            'Config': run.path,
            'Metadata': metadata(run, figures[run.path]),
        }
        for run in runs
    ]
    content = dict(Collections=[collection], Models=models)
    text = yaml.safe_dump(content, sort_keys=False, width=WIDTH, allow_unicode=True)
    # The names of the tables of the figures are keys of this file.
    return f'# tools/dev/make_configs.py; tables: configs/paper_results.json.\n{text}'


def all_files() -> dict[str, str]:
    """Return the text of every file by its path from the root of the repository."""
    figures: dict[str, list[str]] = {path: [] for path in ALL_RUNS}
    for cell in paper_cells(list(figures)):
        if cell.config and cell.paper is not None:
            text = f'{cell.metric} {cell.paper}: {cell.column} in {cell.table}'
            figures[cell.config].append(text)
    files = {path: leaf_text(run) for path, run in ALL_RUNS.items()}
    metafiles = {folder: f'configs/{folder}/metafile.yml' for folder in sorted(ARCHS)}
    for folder, path in metafiles.items():
        own = [run for run in ALL_RUNS.values() if run.folder == folder]
        files[path] = metafile_text(folder, own, figures)
    files['model-index.yml'] = yaml.safe_dump(dict(Import=list(metafiles.values())))
    return files


def main() -> None:
    """Write all files below a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=ROOT, help='folder to write to')
    out = parser.parse_args().out
    files = all_files()
    for path, text in files.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(text, encoding='utf-8')
    leaves = [out / path for path in files if path.endswith('.py')]
    ruff = [sys.executable, '-m', 'ruff', 'format', '--quiet']
    subprocess.run([*ruff, '--config', ROOT / 'pyproject.toml', *leaves], check=True)
    print(f'{len(files)} files written below {out}')


if __name__ == '__main__':
    main()
