"""Accuracy against the batch size on the embedded digits, with and without AGVM.

    python benchmarks/accuracy.py --methods sgd agvm-sgd --batch-sizes 64 256 512

Trains the digits twin of a model once for each method, total batch and seed, always for
the same number of epochs. The config has the settings for batch 256. At batch B the
learning rate is sqrt(B / 256) times the config's, as in the authors' recipe beyond 128.
It stops growing at the batch ``--lr-grows-to``: the larger rates of 512 and 1024
diverge on the digits. The warm-up and AGVM's begin stay at the same epochs. Runs are
trained one after the other. A repeated call resumes an interrupted run and skips
finished ones. The data must exist (``python -m agvm_mm.digits``).
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

from common import report
from mmengine.config import Config
from tqdm import tqdm

from agvm_mm.analysis import figures, logs, paper
from agvm_mm.validation import check_number

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 4096
CONFIG_BATCH_SIZE = 256


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        config: Path of the twin's config from the root.
        method: Method, as in the config's name.
        batch_size: Images of an update.
        seed: Seed of the training; the scenes are the same for all.
        lr_grows_to: Batch up to which the learning rate grows.
    """

    config: str
    method: str
    batch_size: int
    seed: int
    lr_grows_to: int

    @property
    def name(self) -> str:
        """Name of the config, with the batch of this run."""
        name = paper.parse_config_name(Path(self.config).stem)
        return str(replace(name, batch=self.batch_size))

    @property
    def work_root(self) -> str:
        """Name of the folder for the work folders of this seed."""
        return f'seed{self.seed}_lr{self.lr_grows_to}'

    def settings(self) -> dict[str, object]:
        """Return what this run changes in the config, as ``--cfg-options``."""
        cfg = Config.fromfile(ROOT / self.config)
        epoch = math.ceil(IMAGES / self.batch_size)
        config_epoch = IMAGES // CONFIG_BATCH_SIZE
        lr_batch = min(self.batch_size, self.lr_grows_to)
        factor = math.sqrt(lr_batch / CONFIG_BATCH_SIZE)
        warmup = cfg.param_scheduler[0]
        settings = {
            'randomness.seed': self.seed,
            'train_cfg.total_batch_size': self.batch_size,
            'optim_wrapper.optimizer.lr': cfg.optim_wrapper.optimizer.lr * factor,
            'param_scheduler.0.end': warmup.end // config_epoch * epoch,
        }
        if hook := cfg.default_hooks.get('agvm'):
            begin = hook.begin // config_epoch * epoch
            settings['default_hooks.agvm.begin'] = begin
        return settings

    def cell(self, metric: str, ranks: int) -> paper.Cell:
        """Return this run as a cell that ``paper.run_cell`` trains."""
        options = ' '.join(f'{key}={value}' for key, value in self.settings().items())
        cell = find_cell(self.config, ranks)
        return replace(
            cell,
            metric=metric,
            batch_size=self.batch_size,
            config=f'{self.name}.py',
            command=f'{cell.command} --cfg-options {options}',
        )


def find_cell(config: str, ranks: int) -> paper.Cell:
    """Return the first cell of the digits' tables that a config reproduces."""
    cells = paper.read_cells('digits', ranks)
    return next(cell for cell in cells if cell.config == config)


def find_config(model: str, method: str) -> str:
    """Return the config of the digits twin of a model and a method.

    Raises:
        ValueError: If there is none, or several.
    """
    pattern = f'configs/digits/{model}_*_{method}_b{CONFIG_BATCH_SIZE}_*.py'
    found = sorted(ROOT.glob(pattern))
    if len(found) != 1:
        raise ValueError(f'{len(found)} configs match {pattern}')
    return found[0].relative_to(ROOT).as_posix()


def summarize(results: list[dict]) -> list[dict]:
    """Return the mean and range over the seeds of each method at each batch size.

    Args:
        results: Runs with 'method', 'batch_size' and 'value', which is in percent, or
            'NaN' for a run that diverged.

    Returns:
        Rows with 'mean', 'lowest' and 'highest' of the runs that did not diverge (None
        if all did), 'runs' and 'diverged'.
    """
    groups: dict[tuple[str, int], list] = {}
    for result in results:
        key = result['method'], result['batch_size']
        groups.setdefault(key, []).append(result['value'])
    summary = []
    for (method, batch_size), values in groups.items():
        numbers = [value for value in values if value != 'NaN']
        summary.append(
            dict(
                method=method,
                batch_size=batch_size,
                mean=statistics.mean(numbers) if numbers else None,
                lowest=min(numbers, default=None),
                highest=max(numbers, default=None),
                runs=len(values),
                diverged=len(values) - len(numbers),
            )
        )
    return summary


def show(row: dict) -> str:
    """Format a row of the summary: mean, range of several runs, diverged runs."""
    if row['mean'] is None:
        return 'diverged'
    text = f'{row["mean"]:.1f}'
    if row['runs'] - row['diverged'] > 1:
        text += f' ({row["lowest"]:.1f} to {row["highest"]:.1f})'
    if row['diverged']:
        text += f', {row["diverged"]} of {row["runs"]} diverged'
    return text


def accuracy_table(summary: list[dict]) -> str:
    """Return a table with a row for each method and a column for each batch size."""

    def column(batch_size: int) -> report.Column:
        return f'batch {batch_size}', lambda row: row.get(batch_size, '')

    batch_sizes = sorted({row['batch_size'] for row in summary})
    methods: dict[str, dict] = {}
    for row in summary:
        cells = methods.setdefault(row['method'], dict(method=row['method']))
        cells[row['batch_size']] = show(row)
    columns = [('method', itemgetter('method')), *map(column, batch_sizes)]
    return report.table(columns, methods.values())


def describe(result: dict) -> str:
    """Return the result as Markdown."""
    seeds = sorted({row['seed'] for row in result['runs']})
    machine = result['environment']
    return '\n\n'.join(
        [
            f'# Accuracy of {result["model"]} on the digits',
            f'{result["metric"]} in percent after {result["epochs"]} epochs, seed(s) '
            f'{", ".join(map(str, seeds))}: the mean, and where there are several runs '
            'the lowest and the highest. The learning rate grows with the square root '
            f'of the batch up to {result["lr_grows_to"]}.',
            accuracy_table(result['summary']),
            f'{machine["device"]}, {machine["ranks"]} {machine["backend"]} rank(s), '
            f'torch {machine["torch"]}, {machine["date"]}.',
        ]
    )


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--model', default='faster-rcnn', help='twin to train')
    parser.add_argument('--methods', nargs='+', default=['sgd', 'agvm-sgd'])
    parser.add_argument('--batch-sizes', nargs='+', type=int, default=[64, 256, 512])
    parser.add_argument(
        '--lr-grows-to',
        type=int,
        default=CONFIG_BATCH_SIZE,
        help='batch up to which the learning rate grows with its square root',
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--ranks', type=int, default=2, help='processes, or GPUs')
    parser.add_argument(
        '--work-dirs', type=Path, default=ROOT / 'work_dirs/accuracy', help='for runs'
    )
    parser.add_argument('--out', type=Path, default=report.RESULTS)
    parser.add_argument(
        '--name', help='of the files in --out; by default accuracy_<model>'
    )
    return parser.parse_args(arguments)


def check_args(args: argparse.Namespace) -> None:
    """Check that there is at least one rank, and one image in each batch.

    Raises:
        ValueError: If not.
    """
    check_number('--ranks', args.ranks, low=1, integer=True)
    for batch_size in args.batch_sizes:
        check_number('--batch-sizes', batch_size, low=1, integer=True)
    check_number('--lr-grows-to', args.lr_grows_to, low=1, integer=True)


def train(run: Run, metric: str, ranks: int, work_dirs: Path) -> tuple[dict, Path]:
    """Train a run if it is not finished; return its result and its work folder."""
    cell = run.cell(metric, ranks)
    root = work_dirs.absolute() / run.work_root
    paper.run_cell(cell, root)
    folder = paper.work_dir(cell, root)
    result = dict(
        method=run.method,
        batch_size=run.batch_size,
        seed=run.seed,
        value=paper.read_result(folder, metric),
        hours=logs.training_hours(folder),
        command=cell.command,
    )
    return result, folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, print the table, write it and the figure."""
    args = parse_args(arguments)
    check_args(args)
    runs = [
        Run(find_config(args.model, method), method, batch, seed, args.lr_grows_to)
        for seed in args.seeds
        for batch in args.batch_sizes
        for method in args.methods
    ]
    metric = find_cell(runs[0].config, args.ranks).metric
    results, folders = [], []
    with tqdm(runs, unit='run', file=sys.stderr) as progress:
        for run in progress:
            progress.set_description(f'{run.name}, seed {run.seed}')
            found, folder = train(run, metric, args.ranks, args.work_dirs)
            results.append(found)
            folders.append(folder)
    result = dict(
        model=args.model,
        metric=paper.METRICS[metric][0],
        lr_grows_to=args.lr_grows_to,
        epochs=Config.fromfile(ROOT / runs[0].config).train_cfg.max_epochs,
        runs=results,
        summary=summarize(results),
        environment=report.environment(args.ranks),
    )
    name = args.name or f'accuracy_{args.model}'
    report.write(args.out, name, result, describe(result))
    figure = figures.plot_accuracy(figures.folder_points(folders))
    figures.save_figure(figure, [args.out / f'{name}.png'])


if __name__ == '__main__':
    main()
