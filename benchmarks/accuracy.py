"""Sensitivity to the learning rate on the embedded digits, with and without AGVM.

    python benchmarks/accuracy.py --model sem-fpn --plain adamw --batch-sizes 256

Trains the digits twin of a model, on scenes that stay in memory, with every
method of ``--plain``'s family: the optimizer alone, with AGVM, and with a fixed
multiplier on all modules but the backbone. All have the same epochs, seeds and learning
rates, so each run with AGVM has its pair. Learning rates differ by factors of 1.5. The
first seed searches until the best rate of each method has neighbors on both sides; with
the other seeds a method trains its best rate, that of the optimizer alone, and their
neighbors. Each run writes one file into ``--work-dirs`` and is trained once; an
interrupted run starts again.
"""

import argparse
import functools
import json
import math
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from common import report
from common.sensitivity import (
    BEST_COLUMNS,
    MODULE_COLUMNS,
    PAIR_COLUMNS,
    missing_runs,
    module_medians,
    pair_differences,
    summarize,
)
from common.twins import (
    EPOCHS,
    IMAGE_SIZE,
    METRIC,
    MICRO_BATCH,
    SCENES,
    SCENES_FOLDER,
    START,
    Run,
    parse_variant,
    result_file,
    train,
)
from tqdm import tqdm

from agvm_mm.report.figures import save_figure
from agvm_mm.validation import check_number
from benchmarks.paper.sensitivity_figure import plot_sensitivity
from demo import pretrain_backbone, write_digits
from gpu_check.tables import table


def describe(result: dict) -> str:
    """Return the result as Markdown."""
    machine = result['environment']
    processors = Counter(run['processor'] for run in result['runs'])
    trained = ', '.join(f'{name} ({count} runs)' for name, count in processors.items())
    cells = {(row['batch_size'], row['method']) for row in result['best']}
    rates = {(r['run']['batch_size'], r['method'], r['lr']) for r in result['runs']}
    searched = ' The first seed searched the rates.' * (len(rates) > len(cells))
    parts = [
        f'# {result["model"]} with {result["plain"]} on the digits',
        f'{result["metric"]} in percent after {result["epochs"]} epoch(s) of '
        f'{result["scenes"]} scenes of {IMAGE_SIZE} x {IMAGE_SIZE} pixels; '
        f'{len(result["runs"])} runs.{searched}',
        table(BEST_COLUMNS, result['best']),
    ]
    if result['pairs']:
        parts += [
            f'Minus {result["plain"]} alone, with the same batch, learning rate and '
            'seed:',
            table(PAIR_COLUMNS, result['pairs']),
        ]
    if result['modules']:
        parts += [
            'Phi, mu and noise scale at the best rates, medians over the updates and '
            'the seeds:',
            table(MODULE_COLUMNS, result['modules']),
        ]
    parts.append(
        f'Trained on {trained}, torch {machine["torch"]}, {machine["date"]}.',
    )
    return '\n\n'.join(parts)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and check the numbers and the variants.

    Raises:
        ValueError: If a number is below one, a batch is no multiple of a micro-batch,
            or a variant is unknown.
    """
    parser = report.make_parser(__doc__)
    add = parser.add_argument
    add('--model', choices=START, default='sem-fpn')
    add('--plain', choices=START['sem-fpn'], default='adamw')
    add(
        '--variants',
        nargs='*',
        default=['agvm', 'x1.4', 'x2'],
        help="to compare with the optimizer alone; settings as 'agvm momentum=0.97', "
        "AGVM on top of a multiplier as 'agvm x2'",
    )
    add('--batch-sizes', nargs='+', type=int, default=[1024, 4096, 256, 64])
    add('--seeds', nargs='+', type=int, default=[0, 1, 2, 3])
    add('--epochs', type=int, help=f'default: {EPOCHS}')
    add('--scenes', type=int, default=SCENES)
    add('--workers', type=int, default=2, help='runs at the same time')
    add('--hours', type=float, default=math.inf, help='0: report only')
    add('--data', type=Path, default=report.ROOT / 'data' / SCENES_FOLDER)
    add('--work-dirs', type=Path, default=report.ROOT / 'work_dirs/accuracy')
    args = parser.parse_args(arguments)
    args.data, args.work_dirs = args.data.absolute(), args.work_dirs.absolute()
    if args.epochs is None:
        args.epochs = EPOCHS[args.model]
    for name in ('epochs', 'workers'):
        check_number(f'--{name}', getattr(args, name), low=1, integer=True)
    check_number('--scenes', args.scenes, low=1, high=SCENES, integer=True)
    for batch_size in args.batch_sizes:
        if batch_size < MICRO_BATCH or batch_size % MICRO_BATCH:
            raise ValueError(
                f'--batch-sizes must be multiples of {MICRO_BATCH}, got {batch_size}'
            )
    for variant in args.variants:
        parse_variant(variant)
    return args


def study(args: argparse.Namespace, run_all: Callable) -> dict[Run, dict]:
    """Train what is missing, batch by batch; return the results by run.

    ``run_all`` trains a list of runs and yields each when its result is written.
    """
    results: dict[Run, dict] = {}
    for file in args.work_dirs.glob('*.json'):
        found = json.loads(file.read_text())
        results[Run(**found['run'])] = found
    variants = ['', *args.variants]
    end = time.monotonic() + 3600 * args.hours
    with tqdm(unit='run', file=sys.stderr) as progress:
        for batch_size in args.batch_sizes:

            def make(
                variant: str, step: int, seed: int, batch_size: int = batch_size
            ) -> Run:
                fixed = args.model, args.plain, variant, batch_size
                return Run(*fixed, step, seed, args.epochs, args.scenes)

            while runs := missing_runs(make, variants, args.seeds, results):
                if time.monotonic() >= end:
                    return results
                # A few at a time: the next ones depend on the results.
                for run in run_all(runs[: args.workers * len(variants)]):
                    file = result_file(run, args.work_dirs)
                    results[run] = json.loads(file.read_text())
                    progress.set_description(f'{run.name} {results[run]["value"]}')
                    progress.update()
    return results


def report_study(args: argparse.Namespace, results: dict[Run, dict]) -> None:
    """Print and write the tables, and write the figure."""
    same = dict(model=args.model, plain=args.plain)
    same |= dict(epochs=args.epochs, scenes=args.scenes)
    runs = [
        result
        for run, result in sorted(results.items())
        if same.items() <= asdict(run).items()
    ]
    result = dict(
        **same,
        metric=METRIC[args.model],
        best=summarize(runs),
        pairs=pair_differences(runs),
        modules=module_medians(runs),
        runs=runs,
        environment=report.environment(1),
    )
    name = f'accuracy_{args.model}_{args.plain}'
    report.write(args.out, name, result, describe(result))
    # Settings and single modules are in the tables only.
    drawn = [each for each in runs if ' ' not in each['run']['variant']]
    figure = plot_sensitivity(drawn, METRIC[args.model])
    save_figure(figure, args.out / f'{name}.png')


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, print the tables, write them and the figure."""
    args = parse_args(arguments)
    write_digits(args.data, num_train=SCENES, image_size=IMAGE_SIZE)
    pretrain_backbone(args.data)
    task = functools.partial(train, data=args.data, work_dirs=args.work_dirs)
    # Not forked: threads of torch do not survive it.
    with multiprocessing.get_context('spawn').Pool(args.workers) as pool:
        results = study(args, functools.partial(pool.imap_unordered, task))
    report_study(args, results)


if __name__ == '__main__':
    main()
