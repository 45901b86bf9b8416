"""Test the predictions of the noise scale on the embedded digits.

    python benchmarks/noise_scale.py

``predictions``: trains the digits twins plainly at batch 64, with the config's number
of updates and schedule. At the end of the warm-up and before and after each step of
the learning rate it measures the noise scale of each module, and compares Phi at larger
batches, predicted from groups of 64 images, with Phi measured on groups of that size.

``updates``: trains the twin of Semantic FPN on smaller scenes to a fixed training loss
at several batch sizes, with the best constant learning rate of each, and compares the
updates with S_min (1 + B_noise / B).

A repeated call resumes: trainings, measurements and runs that exist in ``--work-dirs``
are kept. The data must exist in ``data/digits`` (``python -m demo.data``).
"""

import argparse
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from statistics import geometric_mean, median

import torch
from common import race, report
from mmengine.config import Config
from torch import Tensor

from agvm_mm.method.noise_scale import relative_updates
from agvm_mm.report.gradient_noise.intervals import Estimate, GradientSums, interval
from agvm_mm.report.gradient_noise.replicas import Setup, measure
from agvm_mm.validation import check_number
from gpu_check.tables import table

ROOT = report.ROOT
CONFIGS = {
    'sem-fpn': 'configs/digits/sem-fpn_r18_w16_sgd_b256_10e_digits.py',
    'faster-rcnn': 'configs/digits/faster-rcnn_r18_w16_fpn_sgd_b256_10e_digits.py',
}
CONFIG_BATCH = 256
IMAGES = 4096
BATCH = 64
"""Batch that the trainings have and that Phi is predicted from."""
LARGER = (256, 1024)
"""Batches that Phi is predicted for."""


def short_config(model: str, micro_batch: int) -> Config:
    """Return a twin's config at batch 64, with as many updates as at its own batch.

    The schedule is the same in updates. The learning rate falls with the square root
    of the batch. Checkpoints are kept after every tenth of the updates.
    """
    cfg = Config.fromfile(ROOT / CONFIGS[model])
    epoch = IMAGES // CONFIG_BATCH
    updates = cfg.train_cfg.max_epochs * epoch
    steps = cfg.param_scheduler[1]
    milestones = [each * epoch for each in steps.milestones]
    steps.update(by_epoch=False, end=updates, milestones=milestones)
    cfg.optim_wrapper.optimizer.lr *= math.sqrt(BATCH / CONFIG_BATCH)
    cfg.train_cfg = dict(
        type='LargeBatchIterTrainLoop',
        max_iters=updates,
        val_interval=updates + 1,
        total_batch_size=BATCH,
    )
    cfg.train_dataloader.batch_size = micro_batch
    cfg.default_hooks.checkpoint.update(
        by_epoch=False, interval=epoch, max_keep_ckpts=-1
    )
    cfg.log_processor.by_epoch = False
    return cfg


def moments(cfg: Config) -> dict[int, str]:
    """Return what happens at the checkpoints that are measured, by update."""
    interval = cfg.default_hooks.checkpoint.interval
    found = {cfg.param_scheduler[0].end: 'end of the warm-up'}
    for number, step in enumerate(cfg.param_scheduler[1].milestones, 1):
        found[step] = ' and '.join(
            filter(None, [found.get(step), f'before step {number}'])
        )
        found[step + interval] = f'{interval} updates after step {number}'
    return found


def train(cfg: Config, folder: Path) -> None:
    """Train a config in a work folder, unless its last checkpoint exists.

    Raises:
        RuntimeError: If the training fails.
    """
    if checkpoint(folder, cfg.train_cfg.max_iters).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    cfg.dump(folder / 'config.py')
    command = [sys.executable, ROOT / 'tools/train.py', folder / 'config.py']
    command += ['--work-dir', folder, '--resume']
    log = folder / 'output.txt'
    with open(log, 'a') as output:
        done = subprocess.run(command, stdout=output, stderr=output)
    if done.returncode:
        raise RuntimeError(f'training failed with {done.returncode}: see {log}')


def checkpoint(folder: Path, update: int) -> Path:
    """Return the path of the checkpoint after an update."""
    return folder / f'iter_{update}.pth'


def measured_sums(cfg: Config, path: Path, images: int, replica: int) -> GradientSums:
    """Return the sums over the gradients at a checkpoint, measured once."""
    file = path.with_name(f'{path.stem}_{images}x{replica}.sums.pt')
    if not file.exists():
        setup = Setup(cfg, str(path), images=images, images_per_replica=replica)
        torch.save(vars(measure(setup)), file)
    return GradientSums(**torch.load(file))


def signal_over_noise(sums: GradientSums, group: int | None = None) -> Tensor:
    """Return signal / noise, of all blocks and then without each, by module."""
    left_out = (None, *range(sums.blocks))
    pairs = (sums.signal_and_noise(group, without) for without in left_out)
    return torch.stack([signal / noise for signal, noise in pairs])


Interval = dict[str, float | None]
"""A number's 'value', and the ends 'low' and 'high' of its interval; None: infinite."""


def intervals(values: Tensor) -> list[Estimate]:
    """Return each module's interval, from values of all blocks and without each."""
    return [interval(each) for each in values.T]


def noise_scales(ratios: Tensor) -> list[Interval]:
    """Return noise / signal; it is infinite where the signal may be 0."""
    inverse = (
        [1 / end if end > 0 else None for end in found] for found in intervals(ratios)
    )
    return [dict(value=value, low=low, high=high) for value, high, low in inverse]


def exponentials(logs: Tensor) -> list[Interval]:
    """Return the intervals of exp(x)."""
    return [
        {name: math.exp(end) for name, end in found._asdict().items()}
        for found in intervals(logs)
    ]


def compare(sums: GradientSums) -> list[dict]:
    """Compare Phi predicted from batch 64 with Phi measured, by batch and module.

    The ratio of both has its own interval: they are of the same images, so their
    errors go together.
    """
    sums = sums.with_all()
    small = signal_over_noise(sums, BATCH // sums.images_per_replica)
    scales = noise_scales(signal_over_noise(sums)), noise_scales(small)
    rows = []
    for batch in LARGER:
        large = signal_over_noise(sums, batch // sums.images_per_replica)
        # Phi is at most 2.
        predicted, found = (
            -(1 + batch * ratios.clamp(min=-1 / batch) / 2).log()
            for ratios in (small, large)
        )
        columns = [*scales, *map(exponentials, (predicted, found, predicted - found))]
        keys = ('noise_scale', 'noise_scale_64', 'predicted', 'measured', 'ratio')
        for module, *row in zip(sums.modules, *columns, strict=True):
            rows.append(
                dict(module=module, batch=batch, **dict(zip(keys, row, strict=True)))
            )
    return rows


def predictions(args: argparse.Namespace, model: str) -> Iterator[dict]:
    """Train a twin, measure at its moments, and yield their rows."""
    cfg = short_config(model, args.images_per_replica)
    folder = args.work_dirs / model
    train(cfg, folder)
    for update, what in moments(cfg).items():
        path = checkpoint(folder, update)
        sums = measured_sums(cfg, path, args.images, args.images_per_replica)
        context = dict(model=model, update=update, moment=what, images=sums.images)
        yield from (context | row for row in compare(sums))


def summarize(rows: list[dict]) -> list[dict]:
    """Return how far predictions are off, for each model and batch."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row['model'], row['batch']), []).append(row)
    found = []
    for (model, batch), members in groups.items():
        errors = [abs(row['ratio']['value'] - 1) for row in members]
        inside = sum(
            row['ratio']['low'] <= 1 <= row['ratio']['high'] for row in members
        )
        worst = members[errors.index(max(errors))]
        found.append(
            dict(
                model=model,
                batch=batch,
                cells=len(members),
                inside=inside,
                median=median(errors),
                largest=max(errors),
                where=f'{worst["module"]}, update {worst["update"]}',
            )
        )
    return found


def run_updates(args: argparse.Namespace) -> dict:
    """Run the trainings to a fixed loss and return their result."""
    cfg = short_config('sem-fpn', args.images_per_replica)
    size = (args.size, args.size)
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline.insert(2, dict(type='Resize', scale=size, keep_ratio=True))
    cfg.model.data_preprocessor.size = size
    cfg.optim_wrapper.pop('clip_grad')
    folder = args.work_dirs / f'updates_{args.size}'
    warmup = cfg.train_cfg.max_iters = cfg.param_scheduler[0].end
    train(cfg, folder)
    start = checkpoint(folder, warmup)
    settings = dict(
        start=str(start),
        target=args.target,
        window=args.window,
        micro_batch=args.images_per_replica,
    )
    measured = measured_sums(cfg, start, args.images, args.images_per_replica)
    result = dict(at_start=compare(measured))
    scales = {'start': scale_of_all(measured)}
    rows = list(search_all(race.Course(cfg), settings, args, folder))
    middle = rows[len(args.batches) // 2]
    if middle['lr']:
        file = run_file(folder, middle['batch'], middle['lr'], args.seeds[0])
        path = file.with_suffix('.pth')
        measured = measured_sums(cfg, path, args.images, args.images_per_replica)
        scales['end'] = scale_of_all(measured)
    return result | dict(
        settings=settings | dict(max_updates=args.max_updates),
        scales=scales,
        rows=rows,
        fits=fit(rows, scales),
        size=args.size,
        seeds=args.seeds,
        images=args.images,
    )


def scale_of_all(sums: GradientSums) -> Interval:
    """Return the noise scale of the whole network."""
    return noise_scales(signal_over_noise(sums.with_all()))[-1]


def run_file(folder: Path, batch: int, lr: float, seed: int) -> Path:
    """Return the file with the result of a run."""
    return folder / f'b{batch}_lr{lr:g}_seed{seed}.json'


def search_all(
    course: race.Course, settings: dict, args: argparse.Namespace, folder: Path
) -> Iterator[dict]:
    """Search the learning rate of each batch, from the smallest; yield each row.

    The first seed searches, the others run the best. The first learning rate of a batch
    is the best of the one before, times the square root of their ratio, rounded to a
    power of 2. A training stops after 1.5 times the updates of the batch before: a
    larger batch does not need more.
    """
    first, most = args.first_lr, args.max_updates
    for before, batch in pairwise([args.batches[0], *args.batches]):
        first *= 2 ** round(math.log2(batch / before) / 2)

        def run(
            lr: float, limit: int, seed: int = args.seeds[0], batch: int = batch
        ) -> float | None:
            file = run_file(folder, batch, lr, seed)
            each = dict(settings, batch=batch, lr=lr, seed=seed)
            save = file.with_suffix('.pth')
            found = race.read_or_train(
                file, each, limit, lambda: course.train(each, limit, save)
            )
            print(
                f'batch {batch} lr {lr:g} seed {seed}: {found["updates"]}', flush=True
            )
            return found['updates']

        best, tried = race.search(run, first, most)
        reached = []
        if best is not None:
            others = (run(best, most, seed) for seed in args.seeds[1:])
            reached = [each for each in (tried[best], *others) if each is not None]
        updates = geometric_mean(reached) if reached else None
        yield dict(
            batch=batch,
            lr=best,
            tried={f'{lr:g}': tried[lr] for lr in sorted(tried)},
            updates=updates,
            by_seed=reached,
        )
        if updates:
            first, most = best, min(most, math.ceil(1.5 * updates))


def fit(rows: list[dict], scales: dict[str, Interval]) -> list[dict]:
    """Return the curve of each noise scale, and that of the best one.

    There is none before two batches reached the target, and the fit of both parameters
    needs three.
    """
    reached = [row for row in rows if row['updates']]
    if len(reached) < 2:
        return []
    batches = [row['batch'] for row in reached]
    updates = [row['updates'] for row in reached]
    curves = [
        (
            f'measured at the {name}',
            scale['value'],
            *race.fit_fewest(batches, updates, scale['value']),
        )
        for name, scale in scales.items()
        if scale['value'] is not None
    ]
    if len(reached) > 2:
        curves.append(('fitted', *race.fit_noise_scale(batches, updates)))
    keys = ('name', 'noise_scale', 'fewest', 'error')
    return [dict(zip(keys, curve, strict=True)) for curve in curves]


def show(found: Interval, digits: str = '.3f') -> str:
    """Format a number with its interval."""
    value, low, high = (
        'inf' if found[name] is None else format(found[name], digits)
        for name in ('value', 'low', 'high')
    )
    return f'{value} ({low} to {high})'


PREDICTION_COLUMNS = (
    ('model', itemgetter('model')),
    ('update', itemgetter('update')),
    ('module', itemgetter('module')),
    ('noise scale', lambda row: show(row['noise_scale'], ',.0f')),
    ('from batch 64', lambda row: show(row['noise_scale_64'], ',.0f')),
    ('batch', itemgetter('batch')),
    ('Phi predicted', lambda row: show(row['predicted'])),
    ('Phi measured', lambda row: show(row['measured'])),
    ('predicted / measured', lambda row: show(row['ratio'])),
)
SUMMARY_COLUMNS = (
    ('model', itemgetter('model')),
    ('batch', itemgetter('batch')),
    ('cells', itemgetter('cells')),
    ('1 in the interval of the ratio', itemgetter('inside')),
    ('median error', lambda row: f'{row["median"]:.1%}'),
    ('largest error', lambda row: f'{row["largest"]:.1%}'),
    ('where', itemgetter('where')),
)


def describe_predictions(result: dict) -> str:
    """Return the result of the predictions as Markdown."""
    rows = result['rows']
    machine = result['environment']
    what = dict.fromkeys((row['update'], row['moment']) for row in rows)
    return '\n\n'.join(
        [
            '# Phi predicted from batch 64',
            f'Digits twins, plain SGD at batch {BATCH}, '
            f'{rows[0]["images"]:,} images in replicas of '
            f'{result["images_per_replica"]} at each moment: '
            + '; '.join(f'{update}, {moment}' for update, moment in what)
            + '. Intervals of 95%.',
            table(SUMMARY_COLUMNS, result['summary']),
            table(PREDICTION_COLUMNS, rows),
            f'{machine["device"]}, torch {machine["torch"]}, {machine["date"]}.',
        ]
    )


def show_tried(row: dict) -> str:
    """Format the learning rates of a batch and the updates of each."""
    return ', '.join(
        f'{lr}: {"stopped" if found is None else format(found, ".1f")}'
        for lr, found in row['tried'].items()
    )


def describe_updates(result: dict) -> str:
    """Return the result of the trainings to a fixed loss as Markdown."""
    settings, machine = result['settings'], result['environment']
    rows, fits = result['rows'], result['fits']
    reached = [row for row in rows if row['updates']]
    columns = [
        ('batch', itemgetter('batch')),
        ('learning rates tried: updates', show_tried),
        ('best', lambda row: f'{row["lr"]:g}'),
        ('updates', lambda row: f'{row["updates"]:.1f}'),
        ('images', lambda row: f'{row["updates"] * row["batch"]:,.0f}'),
    ]
    for each in fits:

        def curve(row: dict, each: dict = each) -> str:
            relative = relative_updates(row['batch'], each['noise_scale'])
            return f'{each["fewest"] * relative:.1f}'

        columns.append((f'curve, {each["name"]}', curve))
    fit_columns = (
        ('noise scale', itemgetter('name')),
        ('images', lambda row: f'{row["noise_scale"]:,.0f}'),
        ('S_min', lambda row: f'{row["fewest"]:.1f}'),
        ('RMS error of log updates', lambda row: f'{row["error"]:.3f}'),
    )
    scales = ', '.join(
        f'{show(scale, ",.0f")} at the {name}'
        for name, scale in result['scales'].items()
    )
    lost = [str(row['batch']) for row in rows if not row['updates']]
    blocks = [
        '# Updates to a fixed training loss',
        f'Twin of Semantic FPN, scenes of {result["size"]} x {result["size"]}, SGD '
        'with momentum 0.9 and a constant learning rate, no clipping, from the end '
        f'of a warm-up to a training loss of {settings["target"]}, averaged over '
        f'{settings["window"]} images (or one update). Seeds {result["seeds"]}, '
        'the learning rate is searched on the first. "Stopped": not at the target '
        'after the updates of the best so far.',
        f'Noise scale of the whole network, measured: {scales}.',
    ]
    if reached:
        blocks.append(table(columns, reached))
    if fits:
        blocks.append(table(fit_columns, fits))
    if lost:
        blocks.append(f'No learning rate reached it at batch {", ".join(lost)}.')
    blocks += [
        f'Phi at the start, predicted from batch {BATCH} and measured, on '
        f'{result["images"]:,} images in replicas of {settings["micro_batch"]}:',
        table(PREDICTION_COLUMNS[2:], result['at_start']),
        f'{machine["device"]}, torch {machine["torch"]}, {machine["date"]}.',
    ]
    return '\n\n'.join(blocks)


def describe(result: dict) -> str:
    """Return a result as Markdown."""
    return (describe_updates if 'fits' in result else describe_predictions)(result)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and check that replicas make up all batches.

    Raises:
        ValueError: If not.
    """
    parser = report.make_parser(__doc__)
    add = parser.add_argument
    parts, models = ['predictions', 'updates'], list(CONFIGS)
    add('--parts', nargs='+', choices=parts, default=parts)
    add('--models', nargs='+', choices=models, default=models)
    add('--images', type=int, default=2048, help='of a measurement, 1024 or more')
    add('--images-per-replica', type=int, default=16)
    add('--work-dirs', type=Path, default=ROOT / 'work_dirs/noise_scale')
    add = parser.add_argument_group('updates').add_argument
    add('--batches', nargs='+', type=int, default=[16, 32, 64, 192, 512])
    add('--first-lr', type=float, default=0.05, help='tried first at the first batch')
    add('--target', type=float, default=0.9, help='loss to reach')
    add('--window', type=int, default=512, help='images of the averaged loss')
    add('--max-updates', type=int, default=300)
    add('--seeds', nargs='+', type=int, default=[0])
    add('--size', type=int, default=48, help='of a scene, in pixels')
    args = parser.parse_args(arguments)
    replica = args.images_per_replica
    check_number('--images-per-replica', replica, low=1, integer=True)
    groups = BATCH // replica
    if BATCH % replica or groups < 2 or groups & (groups - 1):
        raise ValueError(
            f'--images-per-replica {replica}: {BATCH} images must make 2, 4, 8 ... '
            'replicas'
        )
    check_number('--images', args.images, low=max(LARGER), integer=True)
    for batch in args.batches:
        check_number('--batches', batch, low=1, integer=True)
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the missing parts, print the tables and write them."""
    args = parse_args(arguments)
    # Results must not depend on the machine's number of cores.
    torch.set_num_threads(1)
    if 'predictions' in args.parts:
        rows = [row for model in args.models for row in predictions(args, model)]
        result = dict(images_per_replica=args.images_per_replica, rows=rows)
        write(
            args.out, 'noise_scale_predictions', result | dict(summary=summarize(rows))
        )
    if 'updates' in args.parts:
        write(args.out, 'noise_scale_updates', run_updates(args))


def write(out: Path, name: str, result: dict) -> None:
    """Print the tables of a part and write them."""
    result['environment'] = report.environment(1)
    report.write(out, name, result, describe(result))


if __name__ == '__main__':
    main()
