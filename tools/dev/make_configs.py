"""Write the config zoo: one leaf for each run of the paper, and the metafiles.

The output is checked in, and a test compares the two. ``configs/_base_`` and
``configs/digits`` are written by hand.
"""

import argparse
import json
import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from agvm_mm.report.plan import TRAIN_IMAGES
from benchmarks.paper.tables import (
    METHODS,
    MODELS,
    ConfigName,
    method_of,
)

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 88
WARMUP_EPOCHS = dict(coco=2, ade20k=20)
# The authors count 460 updates per epoch at batch 256; by the images it is 459.
RELEASED_WARMUP = {('coco', 256): 920}
# Learning rates of the authors' released recipe that do not follow the rule.
RELEASED_LR = {('faster_rcnn', 'agvm-sgd', 512): '0.38'}
MILESTONES = {12: [8, 11], 14: [10, 12], 16: [12, 14]}
# Updates at batch 32 on ADE20K. Every batch gets as many images.
ADE20K_UPDATES_AT_32 = 160_000
# Settings of the optimizer that differ from the schedule's SGD or AdamW.
OPTIMIZERS = {
    'lars': dict(trust_coefficient=0.001),
    'lamb': dict(weight_decay=0.01),
    'pmd-lamb': dict(weight_decay=0.01, moment_decay=0.1),
}


class Code(str):
    """Expression that a config shows as it is."""


@dataclass(frozen=True)
class Arch:
    """Architecture: one folder of configs.

    Args:
        title: Name in papers.
        task: Task in MIM's metafiles.
        dataset: A key of ``TRAIN_IMAGES``.
        paper: Title of the paper.
        url: Address of the paper.
    """

    title: str
    task: str
    dataset: str
    paper: str
    url: str


FPN_PAPER = 'Panoptic Feature Pyramid Networks', 'https://arxiv.org/abs/1901.02446'
ARCHS = dict(
    faster_rcnn=Arch(
        'Faster R-CNN',
        'Object Detection',
        'coco',
        'Faster R-CNN: Towards Real-Time Object Detection with Region Proposal '
        'Networks',
        'https://arxiv.org/abs/1506.01497',
    ),
    mask_rcnn=Arch(
        'Mask R-CNN',
        'Instance Segmentation',
        'coco',
        'Mask R-CNN',
        'https://arxiv.org/abs/1703.06870',
    ),
    panoptic_fpn=Arch('Panoptic FPN', 'Panoptic Segmentation', 'coco', *FPN_PAPER),
    upernet=Arch(
        'UperNet',
        'Semantic Segmentation',
        'ade20k',
        'Unified Perceptual Parsing for Scene Understanding',
        'https://arxiv.org/abs/1807.10221',
    ),
    sem_fpn=Arch('Semantic FPN', 'Semantic Segmentation', 'ade20k', *FPN_PAPER),
    retinanet=Arch(
        'RetinaNet',
        'Object Detection',
        'coco',
        'Focal Loss for Dense Object Detection',
        'https://arxiv.org/abs/1708.02002',
    ),
    cascade_mask_rcnn=Arch(
        'Cascade Mask R-CNN',
        'Instance Segmentation',
        'coco',
        'Cascade R-CNN: High Quality Object Detection and Instance Segmentation',
        'https://arxiv.org/abs/1906.09756',
    ),
)

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


@dataclass(frozen=True)
class Run:
    """One leaf.

    Args:
        model: File under ``_base_/models``.
        method: A key of ``METHODS``.
        batch: Images of one update.
        epochs: Epochs on COCO, None on ADE20K.
    """

    model: str
    method: str
    batch: int
    epochs: int | None

    @property
    def folder(self) -> str:
        """Folder of the config, a key of ``ARCHS``."""
        return self.model.split('_')[0].replace('-', '_')

    @property
    def dataset(self) -> str:
        """Data set, a key of ``TRAIN_IMAGES``."""
        return ARCHS[self.folder].dataset

    @property
    def is_agvm(self) -> bool:
        """True if AGVM changes the learning rates."""
        return self.method.startswith('agvm-')

    @property
    def is_released(self) -> bool:
        """True if the numbers are from the authors' released recipe."""
        has_release = self.folder in ('faster_rcnn', 'mask_rcnn')
        return has_release and self.method == 'agvm-sgd' and self.batch in (256, 512)

    @property
    def epoch(self) -> int:
        """Updates of one epoch, the last of them perhaps on fewer images."""
        return math.ceil(TRAIN_IMAGES[self.dataset] / self.batch)

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        if self.epochs is None:
            return ADE20K_UPDATES_AT_32 * 32 // self.batch
        return self.epochs * self.epoch

    @property
    def warmup(self) -> int:
        """Updates of warm-up."""
        epochs = WARMUP_EPOCHS[self.dataset]
        if self.dataset == 'ade20k':
            return math.ceil(epochs * TRAIN_IMAGES['ade20k'] / self.batch)
        return RELEASED_WARMUP.get(('coco', self.batch), epochs * self.epoch)

    @property
    def gap(self) -> int:
        """Updates from the end of the warm-up to AGVM's first.

        The authors' 100, but at most half an epoch of COCO or one of ADE20K.
        """
        part = 1 if self.dataset == 'ade20k' else 2
        return min(100, math.ceil(self.epoch / part))

    @property
    def begin(self) -> int:
        """AGVM's first update."""
        return self.warmup + self.gap

    @property
    def images_per_rank(self) -> int:
        """Images of a micro-batch; divides the batch.

        16 is the authors' released number, 2 at 1536 that of the paper's 768 GPUs.
        The others are our choice for GPUs with 80 GB.
        """
        if self.batch == 1536 or 'swin-1b' in self.model:
            return 2
        return 4 if self.batch == 32 or 'swin' in self.model else 16

    @property
    def name(self) -> str:
        """Name of the file without its ending."""
        length, dataset = f'{self.epochs}e', self.dataset
        if self.epochs is None:
            thousands, rest = divmod(self.updates, 1000)
            length = f'{self.updates}iters' if rest else f'{thousands}k'
            dataset += '-512x512'
        return str(ConfigName(self.model, self.method, self.batch, length, dataset))

    @property
    def path(self) -> str:
        """Path of the file from the root of the repository."""
        return f'configs/{self.folder}/{self.name}.py'


def all_runs() -> Iterator[Run]:
    """Yield every leaf, architecture by architecture."""
    for model, methods, batches, epochs in RUNS:
        for method in methods.split():
            for batch in batches:
                yield Run(model, method, batch, epochs)


def learning_rate(run: Run) -> tuple[str, str]:
    """Return the learning rate as an expression, and the rule that gives it."""
    batch = run.batch
    if run.method == 'sgd':
        return f'0.02 * {batch} / 16', 'linear from 0.02 at 16'
    if run.method == 'agvm-sgd':
        rule = 'linear from 0.02 at 16 to 128, then square root'
        by_rule = f'0.16 * ({batch} / 128) ** 0.5'
        if batch <= 128:
            by_rule = f'0.02 * {batch} / 16'
        return RELEASED_LR.get((run.folder, run.method, batch), by_rule), rule
    if run.method in ('adamw', 'agvm-adamw'):
        return f'1e-4 * ({batch} / 16) ** 0.5', 'square root from 1e-4 at 16'
    if run.method in ('lamb', 'pmd-lamb'):
        return f'0.005 * ({batch} / 512) ** 0.5', 'square root from 0.005 at 512'
    assert run.method == 'lars', run
    return f'0.075 * {batch}**0.5', '0.075 times the square root'


def description(run: Run) -> str:
    """Return the comment at the top of a leaf."""
    text = f'{METHODS[run.method].title} at total batch {run.batch}. '
    if run.is_released:
        text += "Numbers of the authors' released recipe"
        if run.epochs == 14:
            text += ", at the 14 epochs of the paper's table"
    else:
        text += f'Ours: lr {learning_rate(run)[1]}'
        if (run.dataset, run.batch) in RELEASED_WARMUP:
            text += f"; the authors' {run.warmup} updates of warm-up"
        if run.is_agvm:
            text += f'; AGVM begins {run.gap} updates after the warm-up'
        if run.method == 'pmd-lamb':
            text += '; the moments decay every epoch, or every 1000 updates'
    lines = textwrap.wrap(f'{text}.', WIDTH - 2, break_on_hyphens=False)
    return '\n'.join(f'# {line}' for line in lines)


def optim_wrapper(run: Run) -> dict:
    """Return the optimizer wrapper, as far as the schedule's is different."""
    optimizer = dict(lr=Code(learning_rate(run)[0]))
    if run.method in OPTIMIZERS:
        optimizer = dict(type=METHODS[run.method].optimizer) | optimizer
        optimizer |= OPTIMIZERS[run.method]
    if run.method == 'pmd-lamb':
        # The second moment remembers about 1000 updates.
        optimizer['period'] = min(run.epoch, 1000)
    if not run.is_agvm:
        return dict(optimizer=optimizer)
    wrapper = dict(
        type='AGVMOptimWrapper',
        optimizer=optimizer,
    )
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
    """Return the schedule of the learning rate, None for the base's own."""
    warmup = dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False)
    warmup |= dict(end=run.warmup)
    if run.dataset == 'ade20k':
        decay = dict(type='PolyLR', by_epoch=False, begin=run.warmup, end=run.updates)
        return [warmup, decay | dict(power=0.9, eta_min=0.0)]
    if (run.dataset, run.batch) not in RELEASED_WARMUP:
        return None
    decay = dict(type='MultiStepLR', by_epoch=True, end=run.epochs)
    return [warmup, decay | dict(milestones=MILESTONES[run.epochs], gamma=0.1)]


def variance_hook(run: Run) -> dict:
    """Return the hook that measures. At every update this must cost nothing."""
    interval = 10 if run.batch <= 1024 else 5 if run.batch <= 2048 else 1
    hook = dict(type='VarianceSyncHook', interval=interval, begin=run.begin)
    return hook if interval > 1 else dict(hook, estimator='replicas')


def loop_and_hooks(run: Run) -> tuple[dict, dict]:
    """Return ``train_cfg`` and ``default_hooks``, as far as the schedule's differ."""
    hooks = {}
    if run.dataset == 'ade20k':
        every = run.updates // 10
        loop = dict(max_iters=run.updates, val_interval=every)
        log = 50 if run.updates >= 5000 else 10
    else:
        every = 1 if run.batch <= 1024 else 4
        loop = dict(val_interval=every) if every > 1 else {}
        log = 50 if run.epoch >= 200 else 10 if run.epoch >= 50 else 1
    if every > 1:
        hooks['checkpoint'] = dict(interval=every)
    if log != 50:
        hooks['logger'] = dict(interval=log)
    if run.is_agvm:
        hooks['agvm'] = variance_hook(run)
    return loop | dict(total_batch_size=run.batch), hooks


def leaf_text(run: Run) -> str:
    """Return the text of one config."""
    schedule = f'coco_{run.epochs}e' if run.epochs else 'ade20k'
    if 'swin' in run.model:
        schedule += '_swin'
    bases = [f'models/{run.model}.py', f'schedules/{schedule}.py']
    train_cfg, default_hooks = loop_and_hooks(run)
    settings = dict(
        _base_=[f'../_base_/{base}' for base in bases],
        train_cfg=train_cfg,
        train_dataloader=dict(batch_size=run.images_per_rank),
        optim_wrapper=optim_wrapper(run),
        param_scheduler=param_scheduler(run),
        default_hooks=default_hooks,
    )
    lines = [description(run)]
    for name, value in settings.items():
        if value:
            lines += layout(f'{name} = ', value)
    return '\n'.join(lines) + '\n'


def parts(value: dict | list) -> tuple[str, list[tuple[str, object]], str]:
    """Return the opening, the items with what is before each, and the closing."""
    if isinstance(value, dict):
        return 'dict(', [(f'{key}=', item) for key, item in value.items()], ')'
    return '[', [('', item) for item in value], ']'


def inline(value: object) -> str:
    """Return the expression of a value on one line."""
    if isinstance(value, dict | list):
        opening, items, closing = parts(value)
        return opening + ', '.join(key + inline(item) for key, item in items) + closing
    return value if isinstance(value, Code) else repr(value)


def layout(head: str, value: object, indent: str = '', end: str = '') -> list[str]:
    """Return ``head`` and a value on as many lines as ruff's formatter gives them."""
    line = f'{indent}{head}{inline(value)}{end}'
    if len(line) <= WIDTH or not isinstance(value, dict | list):
        return [line]
    opening, items, closing = parts(value)
    inner = indent + '    '
    body = [inner + ', '.join(key + inline(item) for key, item in items)]
    several = len(items) > 1
    if len(body[0]) > WIDTH or (several and isinstance(value, list)):
        comma = ',' if several else ''
        body = [line for item in items for line in layout(*item, inner, comma)]
    return [f'{indent}{head}{opening}', *body, f'{indent}{closing}{end}']


def is_as_long_as(table: str, run: Run) -> bool:
    """Return whether a run has the epochs of a table."""
    if table == 'open_source_rerun':
        return run.epochs == 16
    return run.folder != 'mask_rcnn' or run.epochs == 14


def paper_figures(run: Run, paper: dict) -> list[str]:
    """Return the cells of the paper's tables that a run reproduces.

    As strings: MIM takes a list of dicts for inference times.
    """
    figures = []
    for key, table in paper['tables'].items():
        for row in table['rows']:
            folder, model = MODELS[row['model']]
            if (folder, row['batch_size']) != (run.folder, run.batch):
                continue
            if not run.model.startswith(model) or not is_as_long_as(key, run):
                continue
            status = row.get('status', table.get('status'))
            for index, column in enumerate(table['columns']):
                value = row['values'][index]
                if method_of(key, column) != run.method or value is None:
                    continue
                known = status[index] if isinstance(status, list) else status
                figures.append(
                    f'{row["metric"]} {value}: {column} in "{table["title"]}", '
                    f'{paper["status_values"][known]}'
                )
    return figures


def metadata(run: Run, paper: dict) -> dict:
    """Return the metadata of a run in its metafile."""
    found = {
        'Task': ARCHS[run.folder].task,
        'Total Batch Size': run.batch,
        'Updates': run.updates,
        'Images per GPU': run.images_per_rank,
        'Recipe': "the AGVM authors' released one" if run.is_released else 'ours',
    }
    if run.epochs:
        found['Epochs'] = run.epochs
    if run.folder == 'cascade_mask_rcnn':
        found['Note'] = (
            "The paper's one-billion-parameter detector is UniNet-G, which "
            'MMDetection does not have; its figures are not those of this model.'
        )
    elif figures := paper_figures(run, paper):
        found['Figures of the AGVM paper, not measured here'] = figures
    return found


def metafile_text(folder: str, runs: list[Run], paper: dict) -> str:
    """Return a metafile as MIM reads it.

    It has no ``Results``, since we have measured none. The paper's figures have a key
    of their own.
    """
    arch = ARCHS[folder]
    collection = dict(
        Name=f'{arch.title} with AGVM',
        Metadata={
            'Training Data': 'COCO' if arch.dataset == 'coco' else 'ADE20K',
            'Training Techniques': sorted({METHODS[run.method].title for run in runs}),
            'Architecture': [arch.title],
        },
        Paper=dict(Title=arch.paper, URL=arch.url),
    )
    models = [
        {
            'Name': run.name,
            'In Collection': collection['Name'],
            'Config': run.path,
            'Metadata': metadata(run, paper),
        }
        for run in runs
    ]
    text = yaml.safe_dump(
        dict(Collections=[collection], Models=models),
        sort_keys=False,
        width=WIDTH,
        allow_unicode=True,
    )
    return f'# Written by tools/dev/make_configs.py.\n{text}'


def all_files() -> dict[str, str]:
    """Return the text of every file by its path from the root of the repository."""
    results = ROOT / 'configs/paper_results.json'
    paper = json.loads(results.read_text(encoding='utf-8'))
    runs = list(all_runs())
    files = {run.path: leaf_text(run) for run in runs}
    metafiles = {folder: f'configs/{folder}/metafile.yml' for folder in sorted(ARCHS)}
    for folder, path in metafiles.items():
        own = [run for run in runs if run.folder == folder]
        files[path] = metafile_text(folder, own, paper)
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
    print(f'{len(files)} files written below {out}')


if __name__ == '__main__':
    main()
