"""Sensitivity to the learning rate on the embedded digits, with and without AGVM.

    python benchmarks/accuracy.py --model sem-fpn --plain adamw --batch-sizes 256

Trains the digits twin of a model, on 48 x 48 scenes that stay in memory, with every
method of ``--plain``'s family: the optimizer alone, with AGVM, and with a fixed
multiplier on all modules but the backbone. All have the same epochs, seeds and learning
rates, so each run with AGVM has its pair. Learning rates differ by factors of 1.5. The
first seed searches until the best rate of each method has neighbors on both sides; the
other seeds repeat the best rates and their neighbors. Each run writes one file into
``--work-dirs`` and is trained once; an interrupted run starts again.
"""

import argparse
import functools
import json
import math
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from common import report
from common.divergence import StopAtDivergence
from common.sensitivity import (
    BEST_COLUMNS,
    PAIR_COLUMNS,
    missing_runs,
    pair_differences,
    summarize,
)
from mmengine.config import Config
from mmengine.runner import Runner
from tqdm import tqdm

from agvm_mm import cli
from agvm_mm.analysis import logs
from agvm_mm.analysis.figures import plot_sensitivity, save_figure
from agvm_mm.analysis.paper import METRICS
from agvm_mm.checkpoint.atomic import replaced_when_whole
from agvm_mm.digits import pretrain_backbone, write_digits
from agvm_mm.validation import check_choice, check_number

ROOT = Path(__file__).resolve().parents[1]
TWINS = ROOT / 'configs/digits'
SCENES, IMAGE_SIZE = 16384, 48
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
AGVM_SETTINGS = ('momentum', 'interval', 'ratio_bounds', 'estimator', 'anchor')


@dataclass(frozen=True, order=True)
class Run:
    """One training.

    Args:
        model: A key of ``START``.
        plain: Optimizer, a key of ``START[model]``.
        variant: '' for the optimizer alone, 'agvm', or a fixed multiplier, 'x1.4'.
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


def agvm_options(variant: str) -> dict:
    """Return AGVM's settings of a variant: 'agvm', or 'agvm momentum=0.97'.

    Raises:
        ValueError: If a setting is not one of ``AGVM_SETTINGS``.
    """
    options = dict(momentum=0.9, interval=1, estimator='replicas')
    for word in variant.split()[1:]:
        key, _, value = word.partition('=')
        check_choice('--variants', key, AGVM_SETTINGS)
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options


def run_config(run: Run, data: Path) -> Config:
    """Return the config of a run.

    Args:
        run: The run.
        data: Folder of the scenes; the backbone is next to it.
    """
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
    schedule = [
        dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=warmup),
        dict(type='MultiStepLR', by_epoch=False, milestones=drops, gamma=0.1),
    ]
    if run.variant.startswith('agvm'):
        options = agvm_options(run.variant)
        wrapper.type = 'AGVMOptimWrapper'
        wrapper.constructor = 'AGVMOptimWrapperConstructor'
        for key in {'momentum', 'ratio_bounds', 'anchor'} & options.keys():
            wrapper[key] = options.pop(key)
        cfg.default_hooks.agvm = dict(type='VarianceSyncHook', begin=begin, **options)
    elif run.variant:
        multiplier = float(run.variant[1:])
        wrapper.optimizer.lr *= multiplier
        keys = dict(backbone=dict(lr_mult=1 / multiplier))
        wrapper.paramwise_cfg = dict(custom_keys=keys)
    cfg.optim_wrapper = wrapper
    cfg.param_scheduler = schedule
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
    # What is not the model
    for name in ('checkpoint', 'visualization', 'sync_buffers'):
        del cfg.default_hooks[name]
    use_small_scenes(cfg, data)
    return cfg


def use_small_scenes(cfg: Config, data: Path) -> None:
    """Train and evaluate on the scenes of the study, which stay in memory."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size = MICRO_BATCH
        loader.dataset.update(data_root=f'{data}/', cache=True)
    # Samples are copied for each micro-batch, with all that is packed with them.
    cfg.train_dataloader.dataset.pipeline[-1].meta_keys = ('img_shape',)
    if 'ann_file' in cfg.val_evaluator:
        cfg.val_evaluator.ann_file = str(data / cfg.val_dataloader.dataset.ann_file)
        cfg.val_dataloader.dataset.pipeline[1].scale = (IMAGE_SIZE, IMAGE_SIZE)
        # A quarter of the area needs fewer proposals.
        cfg.model.train_cfg.rpn_proposal.update(nms_pre=32, max_per_img=32)
        cfg.model.train_cfg.rcnn.sampler.num = 16
    else:
        cfg.model.data_preprocessor.size = (IMAGE_SIZE, IMAGE_SIZE)
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator


def backbone_file(data: Path) -> Path:
    """Return the checkpoint of the backbone, which the demo has as well."""
    return data.parent / 'digits' / 'resnet18_w16.pth'


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

    Convolutions of few channels are faster that way.
    """
    runner.model.to(memory_format=torch.channels_last)


def agvm_medians(updates: Sequence[dict]) -> dict[str, float]:
    """Return the medians of AGVM's log values, over the updates where they are finite."""
    values: dict[str, list[float]] = {}
    for record in updates:
        for key, value in record.items():
            if key.startswith('agvm/') and math.isfinite(value):
                values.setdefault(key, []).append(value)
    return {key: statistics.median(found) for key, found in values.items()}


def train(run: Run, data: Path, work_dirs: Path) -> None:
    """Train a run in this process, and write its result."""
    torch.set_num_threads(1)
    cfg = run_config(run, data)
    file = result_file(run, work_dirs)
    folder = file.with_suffix('') / str(time.time_ns())
    name_run(cfg, folder)
    start = time.process_time()
    runner = cli.build_runner(cfg, 'none')
    use_fast_layout(runner)
    runner.register_hook(StopAtDivergence())
    result = dict(run=asdict(run), method=run.method, lr=run.lr)
    try:
        runner.train()
    except FloatingPointError as error:
        result |= dict(value=None, diverged=str(error))
    else:
        key, factor = METRICS[METRIC[run.model]]
        value = logs.last_result(folder, key) * factor
        result |= dict(value=round(value, 2), agvm=agvm_medians(logs.read_run(folder)))
    result['cpu_seconds'] = round(time.process_time() - start, 1)
    with replaced_when_whole(file) as path:
        path.write_text(json.dumps(result, indent=1) + '\n')


def describe(result: dict) -> str:
    """Return the result as Markdown."""
    machine = result['environment']
    return '\n\n'.join(
        [
            f'# {result["model"]} with {result["plain"]} on the digits',
            f'{result["metric"]} in percent after {result["epochs"]} epoch(s) of '
            f'{result["scenes"]} scenes of {IMAGE_SIZE} x {IMAGE_SIZE}; '
            f'{len(result["runs"])} runs. The first seed searched the rates.',
            report.table(BEST_COLUMNS, result['best']),
            f'Minus {result["plain"]} alone, with the same batch, learning rate and '
            'seed:',
            report.table(PAIR_COLUMNS, result['pairs']),
            f'{machine["device"]}, torch {machine["torch"]}, {machine["date"]}.',
        ]
    )


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--model', choices=START, default='sem-fpn')
    parser.add_argument('--plain', choices=START['sem-fpn'], default='adamw')
    parser.add_argument(
        '--variants',
        nargs='*',
        default=['agvm', 'x1.4', 'x2'],
        help="to compare with the optimizer alone; settings as 'agvm momentum=0.97'",
    )
    parser.add_argument(
        '--batch-sizes', nargs='+', type=int, default=[1024, 4096, 256, 64]
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3])
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--scenes', type=int, default=SCENES)
    parser.add_argument('--workers', type=int, default=2, help='runs at the same time')
    parser.add_argument('--hours', type=float, help='start no runs after this time')
    parser.add_argument('--data', type=Path, default=ROOT / 'data/digits48')
    parser.add_argument('--work-dirs', type=Path, default=ROOT / 'work_dirs/accuracy')
    parser.add_argument('--out', type=Path, default=report.RESULTS)
    return parser.parse_args(arguments)


def check_args(args: argparse.Namespace) -> None:
    """Check the numbers and the variants.

    Raises:
        ValueError: If a number is below one, a batch is no multiple of a micro-batch,
            or a variant is unknown.
    """
    for name in ('epochs', 'workers'):
        check_number(f'--{name}', getattr(args, name), low=1, integer=True)
    check_number('--scenes', args.scenes, low=1, high=SCENES, integer=True)
    for batch_size in args.batch_sizes:
        if batch_size < MICRO_BATCH or batch_size % MICRO_BATCH:
            raise ValueError(
                f'--batch-sizes must be multiples of {MICRO_BATCH}, got {batch_size}'
            )
    for variant in args.variants:
        if variant.startswith('agvm'):
            agvm_options(variant)
        elif not re.fullmatch(r'x\d+(\.\d+)?', variant) or float(variant[1:]) == 0:
            raise ValueError(
                "--variants must be 'agvm', with settings as in 'agvm momentum=0.97', "
                f"or a multiplier as 'x1.4', got {variant!r}"
            )


def study(args: argparse.Namespace, run_all: Callable) -> dict[Run, dict]:
    """Train what is missing, batch by batch; return the results by run.

    Args:
        args: The command line.
        run_all: Trains a list of runs and yields each when its result is written.
    """
    results: dict[Run, dict] = {}
    for file in args.work_dirs.glob('*.json'):
        found = json.loads(file.read_text())
        results[Run(**found['run'])] = found
    variants = ['', *args.variants]
    end = time.monotonic() + 3600 * (math.inf if args.hours is None else args.hours)
    with tqdm(unit='run', file=sys.stderr) as progress:
        for batch_size in args.batch_sizes:

            def make(
                variant: str, step: int, seed: int, batch_size: int = batch_size
            ) -> Run:
                fixed = args.model, args.plain, variant, batch_size
                return Run(*fixed, step, seed, args.epochs, args.scenes)

            while runs := missing_runs(make, variants, args.seeds, results):
                # All variants of a rate: never half a pair.
                for run in run_all(runs[: args.workers * len(variants)]):
                    file = result_file(run, args.work_dirs)
                    results[run] = json.loads(file.read_text())
                    progress.set_description(f'{run.name} {results[run]["value"]}')
                    progress.update()
                if time.monotonic() > end:
                    return results
    return results


def _train(run: Run, data: Path, work_dirs: Path) -> Run:
    train(run, data, work_dirs)
    return run


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
        runs=runs,
        environment=report.environment(1),
    )
    name = f'accuracy_{args.model}_{args.plain}'
    report.write(args.out, name, result, describe(result))
    save_figure(plot_sensitivity(runs, METRIC[args.model]), args.out / f'{name}.png')


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, print the tables, write them and the figure."""
    args = parse_args(arguments)
    check_args(args)
    args.data, args.work_dirs = args.data.absolute(), args.work_dirs.absolute()
    write_digits(args.data, num_train=SCENES, image_size=IMAGE_SIZE)
    pretrain_backbone(backbone_file(args.data).parent)
    task = functools.partial(_train, data=args.data, work_dirs=args.work_dirs)
    # Not forked: threads of torch do not survive it.
    with multiprocessing.get_context('spawn').Pool(args.workers) as pool:
        results = study(args, functools.partial(pool.imap_unordered, task))
    report_study(args, results)


if __name__ == '__main__':
    main()
