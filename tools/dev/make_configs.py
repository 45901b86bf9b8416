"""Write the config zoo: schedules, one leaf per run of the paper, and metafiles.

What it writes is checked in; a test holds the two together. Models, data sets,
methods and runtimes under ``configs/_base_`` are written by hand, and so is
``configs/digits``.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
# Training images with annotations.
IMAGES = dict(coco=117_266, ade20k=20_210)
WARMUP_EPOCHS = dict(coco=2, ade20k=20)
# The authors take 460 updates for an epoch at batch 256; by the images it is 459.
RELEASED_WARMUP = {('coco', 256): 920}
# Learning rates of the authors' released recipe that the rule does not give.
RELEASED_LR = {('faster_rcnn', 'agvm-sgd', 512): '0.38'}
RELEASED = [
    (folder, 'agvm-sgd', batch)
    for folder in ('faster_rcnn', 'mask_rcnn')
    for batch in (256, 512)
]
MILESTONES = {12: [8, 11], 14: [10, 12], 16: [12, 14]}
# Updates of a run at batch 32 on ADE20K: as many images at every batch.
ADE20K_UPDATES_AT_32 = 160_000


@dataclass(frozen=True)
class Arch:
    """One folder of configs.

    Args:
        title (str): As written in papers.
        task (str): Task of MIM's metafiles.
        dataset (str): 'coco' or 'ade20k'.
        data (str): File under ``_base_/datasets``.
        paper (tuple[str, str]): Title and address.
    """

    title: str
    task: str
    dataset: str
    data: str
    paper: tuple[str, str]


ARCHS = dict(
    faster_rcnn=Arch(
        'Faster R-CNN',
        'Object Detection',
        'coco',
        'coco_detection',
        (
            'Faster R-CNN: Towards Real-Time Object Detection with Region Proposal '
            'Networks',
            'https://arxiv.org/abs/1506.01497',
        ),
    ),
    mask_rcnn=Arch(
        'Mask R-CNN',
        'Instance Segmentation',
        'coco',
        'coco_instance',
        ('Mask R-CNN', 'https://arxiv.org/abs/1703.06870'),
    ),
    panoptic_fpn=Arch(
        'Panoptic FPN',
        'Panoptic Segmentation',
        'coco',
        'coco_panoptic',
        ('Panoptic Feature Pyramid Networks', 'https://arxiv.org/abs/1901.02446'),
    ),
    upernet=Arch(
        'UperNet',
        'Semantic Segmentation',
        'ade20k',
        'ade20k',
        (
            'Unified Perceptual Parsing for Scene Understanding',
            'https://arxiv.org/abs/1807.10221',
        ),
    ),
    sem_fpn=Arch(
        'Semantic FPN',
        'Semantic Segmentation',
        'ade20k',
        'ade20k',
        ('Panoptic Feature Pyramid Networks', 'https://arxiv.org/abs/1901.02446'),
    ),
    retinanet=Arch(
        'RetinaNet',
        'Object Detection',
        'coco',
        'coco_detection',
        ('Focal Loss for Dense Object Detection', 'https://arxiv.org/abs/1708.02002'),
    ),
    cascade_mask_rcnn=Arch(
        'Cascade Mask R-CNN',
        'Instance Segmentation',
        'coco',
        'coco_instance',
        (
            'Cascade R-CNN: High Quality Object Detection and Instance Segmentation',
            'https://arxiv.org/abs/1906.09756',
        ),
    ),
)

METHOD_TITLES = {
    'sgd': 'SGD',
    'agvm-sgd': 'SGD + AGVM',
    'lars': 'LARS',
    'adamw': 'AdamW',
    'agvm-adamw': 'AdamW + AGVM',
    'lamb': 'LAMB',
    'pmd-lamb': 'PMD-LAMB',
}


@dataclass(frozen=True)
class Run:
    """One leaf.

    Args:
        folder (str): A key of ``ARCHS``.
        model (str): File under ``_base_/models``.
        method (str): A key of ``METHOD_TITLES``.
        batch (int): Images of one update.
        epochs (int, optional): COCO: epochs of training. Defaults to None, the
            updates of ADE20K.
    """

    folder: str
    model: str
    method: str
    batch: int
    epochs: int | None = None

    @property
    def arch(self) -> Arch:
        """Arch: What the folder holds."""
        return ARCHS[self.folder]

    @property
    def schedule(self) -> 'Schedule':
        """Schedule: Length, warm-up and decay of the run."""
        return Schedule(self.arch.dataset, self.batch, self.epochs)

    @property
    def is_released(self) -> bool:
        """bool: Whether the authors released numbers for this batch."""
        return (self.folder, self.method, self.batch) in RELEASED

    @property
    def name(self) -> str:
        """str: Name of the file without its ending."""
        dataset = self.arch.dataset
        if dataset == 'ade20k':
            dataset = 'ade20k-512x512'
        schedule = f'b{self.batch}_{self.schedule.length}'
        return f'{self.model}_{self.method}_{schedule}_{dataset}'

    @property
    def path(self) -> str:
        """str: Path of the file from the root of the repository."""
        return f'configs/{self.folder}/{self.name}.py'


@dataclass(frozen=True)
class Schedule:
    """What all runs of a data set, a total batch and a length have in common."""

    dataset: str
    batch: int
    epochs: int | None

    @property
    def epoch(self) -> int:
        """int: Updates of one epoch, the last of them perhaps on fewer images."""
        return math.ceil(IMAGES[self.dataset] / self.batch)

    @property
    def updates(self) -> int:
        """int: Updates of the whole run."""
        if self.epochs is None:
            return ADE20K_UPDATES_AT_32 * 32 // self.batch
        return self.epochs * self.epoch

    @property
    def warmup(self) -> int:
        """int: Updates of warm-up."""
        released = RELEASED_WARMUP.get((self.dataset, self.batch))
        epochs = WARMUP_EPOCHS[self.dataset]
        if self.dataset == 'ade20k':
            by_rule = math.ceil(epochs * IMAGES['ade20k'] / self.batch)
        else:
            by_rule = epochs * self.epoch
        return min(released or by_rule, self.updates // 4)

    @property
    def gap(self) -> int:
        """int: Updates from the end of the warm-up to AGVM's first.

        100, the authors', but not more than half an epoch (one of ADE20K's many).
        """
        part = 1 if self.dataset == 'ade20k' else 2
        return min(100, math.ceil(self.epoch / part))

    @property
    def begin(self) -> int:
        """int: AGVM's first update."""
        return self.warmup + self.gap

    @property
    def interval(self) -> int:
        """int: Updates between measurements; the authors' up to 2K."""
        return 10 if self.batch <= 1024 else 5 if self.batch <= 2048 else 1

    @property
    def estimator(self) -> str:
        """str: Measuring at every update must cost nothing."""
        return 'halves' if self.interval > 1 else 'replicas'

    @property
    def length(self) -> str:
        """str: As file names tell it."""
        if self.epochs is not None:
            return f'{self.epochs}e'
        if self.updates % 1000 == 0:
            return f'{self.updates // 1000}k'
        return f'{self.updates}iters'

    @property
    def name(self) -> str:
        """str: Name of the file without its ending."""
        return f'{self.dataset}_b{self.batch}_{self.length}'


def all_runs() -> Iterator[Run]:
    """Every leaf, architecture by architecture."""
    for method in ('sgd', 'agvm-sgd'):
        for batch in (32, 256, 512, 1024, 1536, 10240):
            yield Run('faster_rcnn', 'faster-rcnn_r50_fpn', method, batch, 16)
    for method in ('adamw', 'lamb', 'pmd-lamb', 'agvm-adamw'):
        for batch in (32, 256, 512, 1024, 1536, 10240):
            yield Run('faster_rcnn', 'faster-rcnn_r50_fpn', method, batch, 12)
    for method in ('adamw', 'agvm-adamw'):
        for batch in (32, 512):
            yield Run('faster_rcnn', 'faster-rcnn_swin-t_fpn', method, batch, 12)

    for method in ('sgd', 'lars', 'agvm-sgd'):
        for batch in (32, 256, 512, 1024, 10240):
            yield Run('mask_rcnn', 'mask-rcnn_r50_fpn', method, batch, 14)
    # The authors' open-source re-run trains for 16 epochs instead of 14.
    for method, batches in (('sgd', (32, 256, 512)), ('agvm-sgd', (256, 512))):
        for batch in batches:
            yield Run('mask_rcnn', 'mask-rcnn_r50_fpn', method, batch, 16)
    for method in ('adamw', 'agvm-adamw'):
        for batch in (32, 512):
            yield Run('mask_rcnn', 'mask-rcnn_swin-t_fpn', method, batch, 12)

    for method in ('sgd', 'agvm-sgd'):
        for batch in (32, 256, 512, 1024, 10240):
            yield Run('panoptic_fpn', 'panoptic-fpn_r50_fpn', method, batch, 14)

    for model, optimizer in (('upernet_r50', 'sgd'), ('upernet_swin-t', 'adamw')):
        for method in (optimizer, f'agvm-{optimizer}'):
            for batch in (32, 256, 512, 1024, 2048, 10240):
                yield Run('upernet', model, method, batch)

    for method in ('sgd', 'agvm-sgd'):
        for batch in (32, 512, 1024, 2048):
            yield Run('sem_fpn', 'sem-fpn_r50', method, batch)

    for method in ('adamw', 'pmd-lamb', 'agvm-adamw'):
        for batch in (32, 4096, 10240):
            yield Run('retinanet', 'retinanet_r18_fpn', method, batch, 12)

    yield Run(
        'cascade_mask_rcnn', 'cascade-mask-rcnn_swin-1b_fpn', 'agvm-adamw', 960, 12
    )


def images_per_rank(run: Run) -> int:
    """Images of a micro-batch; divides the total.

    16 is the authors' released number, 2 at 1536 that of the paper's 768 GPUs; the
    others are our choice for GPUs of 80 GB.
    """
    if run.batch == 1536 or 'swin-1b' in run.model:
        return 2
    if run.batch == 32 or 'swin' in run.model:
        return 4
    return 16


def learning_rate(run: Run) -> tuple[str, str]:
    """The learning rate as an expression, and the rule that it follows."""
    batch = run.batch
    released = RELEASED_LR.get((run.folder, run.method, batch))
    if released:
        return released, "the authors' released value"
    if run.method == 'sgd':
        return f'0.02 * {batch} / 16', 'linear from 0.02 at 16'
    if run.method == 'agvm-sgd':
        rule = 'linear from 0.02 at 16 to 128, then square root'
        if batch <= 128:
            return f'0.02 * {batch} / 16', rule
        return f'0.16 * ({batch} / 128) ** 0.5', rule
    if run.method in ('adamw', 'agvm-adamw'):
        return f'1e-4 * ({batch} / 16) ** 0.5', 'square root from 1e-4 at 16'
    if run.method in ('lamb', 'pmd-lamb'):
        rule = 'square root from 0.005 at 512'
        return f'0.005 * ({batch} / 512) ** 0.5', rule
    assert run.method == 'lars', run
    return f'0.075 * {batch}**0.5', '0.075 times the square root'


def comment(text: str) -> str:
    """Text as a comment of at most 88 columns."""
    lines, line = [], '#'
    for word in text.split():
        if len(line) + 1 + len(word) > 88:
            lines.append(line)
            line = '#'
        line += f' {word}'
    return '\n'.join([*lines, line]) + '\n'


def assignment(name: str, opening: str, content: str, closing: str) -> str:
    """An assignment on one line or, if that is too long, on three, as ruff has it."""
    line = f'{name} = {opening}{content}{closing}'
    if len(line) <= 88:
        return line
    return f'{name} = {opening}\n    {content}\n{closing}'


def leaf_text(run: Run) -> str:
    """One config."""
    schedule = run.schedule
    is_agvm = run.method.startswith('agvm')
    lr, rule = learning_rate(run)
    title = f'{METHOD_TITLES[run.method]} at total batch {run.batch}.'
    if run.is_released:
        text = f"{title} Numbers of the authors' released recipe"
        if run.epochs == 14:
            text += ", at the 14 epochs of the paper's table"
        text += '.'
    else:
        text = f'{title} Ours: lr {rule}'
        if is_agvm:
            text += f'; AGVM begins {schedule.gap} updates after the warm-up'
        if run.method == 'pmd-lamb':
            text += '; the moments decay every epoch, or every 1000 updates'
        text += '.'
    method = run.method
    if 'swin' in run.model:
        method += '_swin'
    optimizer = f'lr={lr}'
    if run.method == 'pmd-lamb':
        # 1000 updates are what the second moment remembers.
        optimizer += f', period={min(schedule.epoch, 1000)}'
    wrapper = f'optimizer=dict({optimizer})'
    if run.method == 'agvm-sgd' and run.batch >= 256:
        method += '_clip'
        wrapper += f', clip_window=({schedule.warmup - schedule.gap}, {schedule.begin})'
    lines = [
        comment(text).rstrip(),
        '_base_ = [',
        f"    '../_base_/models/{run.model}.py',",
        f"    '../_base_/datasets/{run.arch.data}.py',",
        f"    '../_base_/schedules/{schedule.name}.py',",
        f"    '../_base_/methods/{method}.py',",
        f"    '../_base_/{run.arch.dataset}_runtime.py',",
        ']',
        f'train_dataloader = dict(batch_size={images_per_rank(run)})',
        assignment('optim_wrapper', 'dict(', wrapper, ')'),
    ]
    if is_agvm:
        hook = f"type='VarianceSyncHook', interval={schedule.interval}, "
        hook += f'begin={schedule.begin}'
        if schedule.estimator != 'halves':
            hook += f", estimator='{schedule.estimator}'"
        lines.append(assignment('custom_hooks', '[', f'dict({hook})', ']'))
    return '\n'.join(lines) + '\n'


def schedule_text(schedule: Schedule) -> str:
    """Length, warm-up, decay and default hooks of all runs that share them."""
    if schedule.dataset == 'ade20k':
        return ade20k_schedule_text(schedule)
    epochs, batch = schedule.epochs, schedule.batch
    every = 1 if batch <= 1024 else 4
    log = 50 if schedule.epoch >= 200 else 10 if schedule.epoch >= 50 else 1
    head = comment(
        f'{epochs} epochs of {IMAGES["coco"]:,} images at total batch {batch}: '
        f'{schedule.epoch} updates each, {schedule.updates} in all. Warm-up for '
        f'{WARMUP_EPOCHS["coco"]} epochs'
        + (', as the authors count them.' if batch == 256 else '.')
    )
    return f"""{head}train_cfg = dict(
    type='LargeBatchTrainLoop',
    max_epochs={epochs},
    val_interval={every},
    total_batch_size={batch},
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(
        type='ExponentialWarmupLR',
        start_factor=0.001,
        by_epoch=False,
        begin=0,
        end={schedule.warmup},
    ),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        begin=0,
        end={epochs},
        milestones={MILESTONES[epochs]},
        gamma=0.1,
    ),
]

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval={log}),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', interval={every}),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
)
"""


def ade20k_schedule_text(schedule: Schedule) -> str:
    """MMSegmentation counts updates, not epochs."""
    updates, batch = schedule.updates, schedule.batch
    every = updates // 10
    log = 50 if updates >= 5000 else 10
    head = comment(
        f'{updates} updates at total batch {batch}, as many images as '
        f'{ADE20K_UPDATES_AT_32} updates at 32. Warm-up for '
        f'{WARMUP_EPOCHS["ade20k"]} of 253 epochs.'
    )
    return f"""{head}train_cfg = dict(
    type='LargeBatchIterTrainLoop',
    max_iters={updates},
    val_interval={every},
    total_batch_size={batch},
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(
        type='ExponentialWarmupLR',
        start_factor=0.001,
        by_epoch=False,
        begin=0,
        end={schedule.warmup},
    ),
    dict(
        type='PolyLR',
        by_epoch=False,
        begin={schedule.warmup},
        end={updates},
        power=0.9,
        eta_min=0.0,
    ),
]

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval={log}, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', by_epoch=False, interval={every}),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
"""


# Which leaf stands for a column of the paper's tables.
COLUMNS = dict(
    sgd_four_tasks={'MegDet': 'sgd', 'LARS': 'lars', 'AGVM': 'agvm-sgd'},
    adamw_faster_rcnn={
        'AdamW': 'adamw',
        'LAMB': 'lamb',
        'PMD-LAMB': 'pmd-lamb',
        'AGVM': 'agvm-adamw',
    },
    retinanet_extreme={'PMD-LAMB': 'pmd-lamb', 'AGVM': 'agvm-adamw'},
    open_source_rerun={'baseline': 'sgd', 'AGVM': 'agvm-sgd'},
)
PAPER_MODELS = dict(
    faster_rcnn='faster-rcnn_r50_fpn',
    mask_rcnn='mask-rcnn_r50_fpn',
    panoptic_fpn='panoptic-fpn_r50_fpn',
    semantic_fpn='sem-fpn_r50',
    retinanet_r18='retinanet_r18_fpn',
)


def epochs_of_table(table: str, run: Run) -> bool:
    """Whether a run is as long as those of a table."""
    if table == 'open_source_rerun':
        return run.epochs == 16
    if table == 'sgd_four_tasks' and run.folder == 'mask_rcnn':
        return run.epochs == 14
    return True


def paper_figures(run: Run, paper: dict) -> list[str]:
    """The cells of the paper's tables that a run makes.

    As strings: MIM takes a list of dicts for inference times.
    """
    figures = []
    for key, columns in COLUMNS.items():
        table = paper['tables'][key]
        for row in table['rows']:
            if PAPER_MODELS[row['model']] != run.model or not epochs_of_table(key, run):
                continue
            if row['batch_size'] != run.batch:
                continue
            for index, column in enumerate(table['columns']):
                value = row['values'][index]
                if columns.get(column) != run.method or value is None:
                    continue
                status = row.get('status', table.get('status'))
                if isinstance(status, list):
                    status = status[index]
                figures.append(
                    f'{row["metric"]} {value}: {column} in "{table["title"]}", '
                    f'{paper["status_values"][status]}'
                )
    return figures


def metafile_text(folder: str, runs: list[Run], paper: dict) -> str:
    """A metafile as MIM reads it.

    It has no ``Results``: nothing of it was measured by us. The paper's figures
    stand under a key of their own.
    """
    arch = ARCHS[folder]
    collection = f'{arch.title} with AGVM'
    collections = [
        dict(
            Name=collection,
            Metadata={
                'Training Data': 'COCO' if arch.dataset == 'coco' else 'ADE20K',
                'Training Techniques': sorted(
                    {METHOD_TITLES[run.method] for run in runs}
                ),
                'Architecture': [arch.title],
            },
            Paper=dict(Title=arch.paper[0], URL=arch.paper[1]),
        )
    ]
    models = []
    for run in runs:
        schedule = run.schedule
        metadata = {
            'Task': arch.task,
            'Total Batch Size': run.batch,
            'Updates': schedule.updates,
            'Images per GPU': images_per_rank(run),
            'Recipe': "the AGVM authors' released one" if run.is_released else 'ours',
        }
        if run.epochs:
            metadata['Epochs'] = run.epochs
        figures = paper_figures(run, paper)
        if figures:
            metadata['Figures of the AGVM paper, not measured here'] = figures
        if folder == 'cascade_mask_rcnn':
            metadata['Note'] = (
                "The paper's one-billion-parameter detector is UniNet-G, which "
                'MMDetection does not have; its figures are not those of this model.'
            )
        models.append(
            {
                'Name': run.name,
                'In Collection': collection,
                'Config': run.path,
                'Metadata': metadata,
            }
        )
    head = '# Written by tools/dev/make_configs.py.\n'
    return head + yaml.safe_dump(
        dict(Collections=collections, Models=models),
        sort_keys=False,
        width=88,
        allow_unicode=True,
    )


def all_files() -> dict[str, str]:
    """Text by path from the root of the repository."""
    paper = json.loads(
        (ROOT / 'configs/paper_results.json').read_text(encoding='utf-8')
    )
    runs = list(all_runs())
    files = {run.path: leaf_text(run) for run in runs}
    for schedule in dict.fromkeys(run.schedule for run in runs):
        path = f'configs/_base_/schedules/{schedule.name}.py'
        files[path] = schedule_text(schedule)
    for folder in ARCHS:
        own = [run for run in runs if run.folder == folder]
        files[f'configs/{folder}/metafile.yml'] = metafile_text(folder, own, paper)
    imports = [f'configs/{folder}/metafile.yml' for folder in sorted(ARCHS)]
    files['model-index.yml'] = yaml.safe_dump(dict(Import=imports))
    return files


def main() -> None:
    """Write everything below a folder."""
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
