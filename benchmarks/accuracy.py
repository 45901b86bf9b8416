"""Accuracy against the batch size on the embedded digits, with AGVM and without.

    python benchmarks/accuracy.py --methods sgd agvm-sgd --batch-sizes 64 256 512

Trains the digits twin of a model once for each method, total batch and seed, all for
the same number of epochs. The config says what batch 256 takes. At batch B the learning
rate is sqrt(B / 256) of that, as in the authors' recipe beyond 128, up to the batch of
``--lr-grows-to`` and no higher: the larger rates of 512 and 1024 diverge on the digits.
The warm-up and AGVM's begin stay at the same epochs. Runs go one after the other; an
interrupted call goes on where it was, and a finished run is not run again. The data
have to be there (``python -m agvm_mm.digits``).
"""

import argparse
import math
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import common
from mmengine.config import Config
from tqdm import tqdm

from agvm_mm.validation import check_number

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / 'tools'), str(ROOT / 'tools/analysis')]

import paper_tables  # noqa: E402
import plot_accuracy  # noqa: E402

IMAGES = 4096
CONFIG_BATCH_SIZE = 256


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        config (str): The twin's config, from the root.
        method (str): As in the config's name.
        batch_size (int): Images of an update.
        seed (int): Of the training; the scenes are the same for all.
        lr_grows_to (int): Batch up to which the learning rate grows.
    """

    config: str
    method: str
    batch_size: int
    seed: int
    lr_grows_to: int

    @property
    def name(self) -> str:
        """str: The config's name with this run's batch."""
        batch = f'_b{CONFIG_BATCH_SIZE}_'
        return Path(self.config).stem.replace(batch, f'_b{self.batch_size}_')

    def settings(self) -> dict[str, object]:
        """What this run changes of the config, as ``--cfg-options``."""
        cfg = Config.fromfile(ROOT / self.config)
        epoch = math.ceil(IMAGES / self.batch_size)
        config_epoch = IMAGES // CONFIG_BATCH_SIZE
        lr_batch = min(self.batch_size, self.lr_grows_to)
        factor = math.sqrt(lr_batch / CONFIG_BATCH_SIZE)
        warmup, hooks = cfg.param_scheduler[0], cfg.get('custom_hooks', [])
        settings = {
            'randomness.seed': self.seed,
            'train_cfg.total_batch_size': self.batch_size,
            'optim_wrapper.optimizer.lr': cfg.optim_wrapper.optimizer.lr * factor,
            'param_scheduler.0.end': warmup.end // config_epoch * epoch,
        }
        for index, hook in enumerate(hooks):
            if hook.type == 'VarianceSyncHook':
                begin = hook.begin // config_epoch * epoch
                settings[f'custom_hooks.{index}.begin'] = begin
        return settings

    def cell(self, metric: str, ranks: int) -> paper_tables.Cell:
        """This run as a cell that ``paper_tables.run_cell`` trains."""
        options = ' '.join(f'{key}={value}' for key, value in self.settings().items())
        cell = next(
            cell
            for cell in paper_tables.read_cells('digits', ranks)
            if cell.config == self.config
        )
        return replace(
            cell,
            metric=metric,
            batch_size=self.batch_size,
            config=f'{self.name}.py',
            command=f'{cell.command} --cfg-options {options}',
        )


def find_config(model: str, method: str) -> str:
    """The digits twin of a model and a method.

    Raises:
        ValueError: If there is none, or several.
    """
    pattern = f'configs/digits/{model}_*_{method}_b{CONFIG_BATCH_SIZE}_*.py'
    found = sorted(ROOT.glob(pattern))
    if len(found) != 1:
        raise ValueError(f'{len(found)} configs match {pattern}')
    return found[0].relative_to(ROOT).as_posix()


def summarize(results: list[dict]) -> list[dict]:
    """Mean and spread over the seeds of each method at each batch size.

    Args:
        results (list[dict]): With 'method', 'batch_size' and 'value', which is in
            percent, or 'NaN' for a run that diverged.

    Returns:
        list[dict]: With 'mean', 'lowest' and 'highest' of the runs that did not
        diverge (None if all did), 'runs' and 'diverged'.
    """
    groups: dict[tuple, list] = {}
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
    """A cell of the table: the mean, the range of several runs, what diverged."""
    if row['mean'] is None:
        return 'diverged'
    text = f'{row["mean"]:.1f}'
    if row['runs'] - row['diverged'] > 1:
        text += f' ({row["lowest"]:.1f} to {row["highest"]:.1f})'
    if row['diverged']:
        text += f', {row["diverged"]} of {row["runs"]} diverged'
    return text


def describe(result: dict) -> str:
    """The tables as text."""
    batch_sizes = sorted({row['batch_size'] for row in result['summary']})
    cells = {(row['method'], row['batch_size']): row for row in result['summary']}
    methods = list(dict.fromkeys(row['method'] for row in result['summary']))
    accuracy = common.table(
        ('method', *(f'batch {size}' for size in batch_sizes)),
        [
            (
                method,
                *(
                    show(cells[method, size]) if (method, size) in cells else ''
                    for size in batch_sizes
                ),
            )
            for method in methods
        ],
    )
    seeds = sorted({row['seed'] for row in result['runs']})
    place = result['environment']
    return '\n\n'.join(
        [
            f'# Accuracy of {result["model"]} on the digits',
            f'{result["metric"]} in percent after {result["epochs"]} epochs, seed(s) '
            f'{", ".join(map(str, seeds))}: the mean, and where there are several runs '
            'the lowest and the highest. The learning rate grows with the square root '
            f'of the batch up to {result["lr_grows_to"]}.',
            accuracy,
            f'{place["device"]}, {place["ranks"]} {place["backend"]} rank(s), torch '
            f'{place["torch"]}, {place["date"]}.',
        ]
    )


def parse_args(argv=None) -> argparse.Namespace:
    """Read the command line."""
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
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results')
    parser.add_argument(
        '--name', help='of the files in --out; by default accuracy_<model>'
    )
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Train what is missing, print the table, write it and the figure."""
    args = parse_args(argv)
    for name, values in (
        ('--ranks', [args.ranks]),
        ('--batch-sizes', args.batch_sizes),
        ('--lr-grows-to', [args.lr_grows_to]),
    ):
        for value in values:
            check_number(name, value, low=1, integer=True)
    runs = [
        Run(
            find_config(args.model, method),
            method,
            batch_size,
            seed,
            args.lr_grows_to,
        )
        for seed in args.seeds
        for batch_size in args.batch_sizes
        for method in args.methods
    ]
    metric = next(
        cell.metric
        for cell in paper_tables.read_cells('digits', args.ranks)
        if cell.config == runs[0].config
    )
    results, folders = [], []
    with tqdm(runs, unit='run', file=sys.stderr) as progress:
        for run in progress:
            progress.set_description(f'{run.name}, seed {run.seed}')
            root = args.work_dirs.absolute() / f'seed{run.seed}_lr{run.lr_grows_to}'
            cell = run.cell(metric, args.ranks)
            paper_tables.run_cell(cell, root)
            folder = paper_tables.work_dir(cell, root)
            folders.append(folder)
            results.append(
                dict(
                    method=run.method,
                    batch_size=run.batch_size,
                    seed=run.seed,
                    value=paper_tables.read_result(folder, metric),
                    hours=plot_accuracy.training_hours(folder),
                    command=cell.command,
                )
            )
    result = dict(
        model=args.model,
        metric=paper_tables.METRICS[metric][0],
        lr_grows_to=args.lr_grows_to,
        epochs=Config.fromfile(ROOT / runs[0].config).train_cfg.max_epochs,
        runs=results,
        summary=summarize(results),
        environment=common.environment(args.ranks),
    )
    name = args.name or f'accuracy_{args.model}'
    common.write(args.out, name, result, describe(result))
    figure = plot_accuracy.plot_accuracy(plot_accuracy.folder_points(folders))
    plot_accuracy.plot_variance.save_figure(figure, [args.out / f'{name}.png'])


if __name__ == '__main__':
    main()
