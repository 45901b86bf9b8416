"""Cost of AGVM: seconds, reduced bytes and memory against a plain OptimWrapper.

    python benchmarks/overhead.py --model faster-rcnn_r50 --rounds 12

All variants of training alternate within one run, in the same processes and on the same
images, each with its own copy of the model. Two of them are plain: the distance of
their ratios from 1 is the noise of the machine. Rounds in which other programs use the
cores affect a median less than a mean, and a ratio within a round less than a ratio of
medians. Therefore the ratios here are medians over the rounds of the ratio to the mean
of the plain variants in the same round. Runs on GPUs with NCCL if there are enough of
them, else on CPU cores with gloo.
"""

import argparse
import math
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import torch
from common import memory, report
from mmdet.utils import register_all_modules

from agvm_mm.estimators import ESTIMATORS
from agvm_mm.training.summary import parameter_counts
from gpu_check import timing
from gpu_check.counts import device_peak
from gpu_check.detectors import build_detector, detector_settings, make_batch
from gpu_check.ranks import run_on_ranks
from gpu_check.trainers import OPTIMIZERS, Trainer

# Size of an image in pixels, images per rank, and rounds.
DEFAULTS = {'faster-rcnn_r50': (320, 1, 12), 'digits': (96, 8, 40)}
PLAIN = (('plain', False), ('plain again', False))
CELLS = (*PLAIN, *timing.AGVM_CELLS)
PRELOAD = ('mmdet.models', 'mmdet.structures', 'agvm_mm')
INTERVAL = 10
# Bytes of scalars and of blocks in the cache, which do not count as copies of buckets.
SCRATCH = 5e6
# Highest ratio to plain of each variant.
TARGETS = {
    ('halves', 'unmeasured'): 1.01,
    ('replicas', 'unmeasured'): 1.01,
    ('halves', 'measured'): 1.35,
    ('replicas', 'measured'): 1.05,
    ('halves', 'amortized'): 1.04,
    ('replicas', 'amortized'): 1.01,
}


def measure_rank(model: dict, settings: dict) -> dict:
    """Measure all variants on this rank.

    Args:
        model: Settings of the detector.
        settings: See :func:`measure`.
    """
    register_all_modules()
    trainers = {
        variant: Trainer(build_detector(model), variant, settings['optimizer'])
        for variant in timing.variants_of(CELLS)
    }
    rank = torch.distributed.get_rank()
    classes = model['roi_head']['bbox_head']['num_classes']

    def batch_of(turn: int) -> dict:
        seed = 1000 * turn + rank
        shape = (settings['size'],) * 2
        return make_batch(seed, settings['images'], shape, classes)

    measured = timing.measure_cells(
        trainers,
        CELLS,
        batch_of,
        rounds=settings['rounds'],
        warmup=settings['warmup'],
    )
    return dict(
        measured,
        **measure_memory(trainers, batch_of(0)),
        variances={name: trainers[name].wrapper.agvm.variances for name in ESTIMATORS},
        facts=model_facts(trainers),
    )


def measure_memory(trainers: dict[str, Trainer], batch: dict) -> dict:
    """Measure the estimators' memory, and each cell's peak on a GPU."""
    device_peaks = {
        (variant, measured): device_peak(trainers[variant], batch, measured=measured)
        for variant, measured in CELLS
    }
    followed = ESTIMATORS if memory.can_follow_storages() else ()
    return dict(
        device_peaks=device_peaks,
        memory={
            name: memory.estimator_memory(trainers[name], batch) for name in followed
        },
    )


def model_facts(trainers: dict[str, Trainer]) -> dict:
    """Return parameters and DDP's buckets of the model that is measured."""
    plain = trainers['plain']
    parameters = [p for p in plain.ddp.parameters() if p.requires_grad]
    return dict(
        modules=parameter_counts(trainers['halves'].wrapper),
        trainable_parameters=sum(p.numel() for p in parameters),
        gradient_bytes=sum(p.numel() * p.element_size() for p in parameters),
        buckets=plain.bucket_bytes(),
    )


def measure(model: str, ranks: int, settings: dict) -> dict:
    """Run the benchmark.

    Args:
        model: A key of ``DEFAULTS``.
        ranks: Number of ranks, at least 2.
        settings: 'rounds', 'warmup', 'images' per rank, their 'size' in pixels, and
            the 'optimizer', 'SGD' or 'AdamW'.

    Returns:
        Result as written to the JSON file.
    """
    by_rank = run_on_ranks(
        measure_rank, ranks, detector_settings(model), settings, preload=PRELOAD
    )
    first = by_rank[0]
    variants = timing.merge_ranks(by_rank, PLAIN)
    for row in variants:
        variant, measured = row['variant'], row['measured']
        row['peak_bytes_on_gpu'] = first['device_peaks'][variant, measured]
        if measured and variant in first['memory']:
            row['memory'] = {
                key: max(result['memory'][variant][key] for result in by_rank)
                for key in first['memory'][variant]
            }
    return dict(
        benchmark='overhead',
        model=model,
        settings=settings,
        environment=report.environment(ranks),
        **first['facts'],
        variances=first['variances'],
        variants=variants,
        targets=compare_times(variants, settings['rounds']),
        memory_targets=compare_memory(variants),
    )


def compare_times(variants: list[dict], rounds: int) -> list[dict]:
    """Compare each target with the ratios of wall-clock time and of CPU time."""
    rows = {(row['variant'], row['measured']): row for row in variants}
    found = []
    for (variant, updates), target in TARGETS.items():
        cells = rows[variant, False], rows[variant, True]
        times = {
            clock: compare_ratio(updates, target, [row[key] for row in cells], rounds)
            for clock, key in (('clock', 'ratio'), ('cpu_time', 'cpu_ratio'))
        }
        quantity = f'ratio, {updates}'
        found.append(dict(variant=variant, quantity=quantity, target=target, **times))
    return found


def compare_ratio(
    updates: str, target: float, ratios: list[dict[str, float]], rounds: int
) -> dict:
    """Compare a target with the ratio that was found.

    Args:
        updates: 'unmeasured', 'measured' or 'amortized'.
        target: Highest ratio that meets the target.
        ratios: Quartiles of the ratio of unmeasured and of measured updates.
        rounds: Rounds that the quartiles are from.

    Returns:
        The ratio 'found', its 'uncertainty', which is twice the standard error of a
        median, and 'met', which is None if the target is within the uncertainty.
    """
    (low, low_error), (high, high_error) = (
        median_and_error(ratio, rounds) for ratio in ratios
    )
    if updates == 'amortized':
        share = 1 / INTERVAL
        value = (1 - share) * low + share * high
        error = math.hypot((1 - share) * low_error, share * high_error)
    elif updates == 'measured':
        value, error = high, high_error
    else:
        value, error = low, low_error
    met = None if abs(value - target) < error else value <= target
    return dict(found=value, uncertainty=error, met=met)


def median_and_error(ratio: dict[str, float], rounds: int) -> tuple[float, float]:
    """Return a median and twice its standard error, from the quartiles.

    For a normal distribution the standard error of the median is 1.253 sigma /
    sqrt(n), and the quartiles are 1.349 sigma apart.
    """
    width = ratio['quartile_3'] - ratio['quartile_1']
    return ratio['median'], 2 * 1.253 / 1.349 * width / math.sqrt(rounds)


def compare_memory(variants: list[dict]) -> list[dict]:
    """Compare the estimators' memory with that of the buckets in flight."""
    return [
        dict(
            variant=row['variant'],
            **row['memory'],
            met=row['memory']['own'] <= row['memory']['in_flight'] + SCRATCH,
        )
        for row in variants
        if 'memory' in row
    ]


VERDICTS = {True: 'yes', False: 'NO', None: 'within uncertainty'}


def show_ratio(ratio: dict) -> str:
    """Format a ratio of :func:`compare_ratio`."""
    return f'{ratio["found"]:.3f} +- {ratio["uncertainty"]:.3f}'


def show_quartiles(ratio: dict[str, float]) -> str:
    """Format the quartiles of a ratio."""
    return f'{ratio["quartile_1"]:.3f} to {ratio["quartile_3"]:.3f}'


VARIANT_COLUMNS = (
    *report.CELL_COLUMNS,
    ('seconds', report.median('seconds', 3)),
    ('ratio', report.median('ratio', 3)),
    ('quartiles', lambda row: show_quartiles(row['ratio'])),
    ('ratio of CPU time', report.median('cpu_ratio', 3)),
    (
        'gradients reduced, MB',
        lambda row: report.megabytes(row['bytes_reduced']['gradients']),
    ),
    ('other, bytes', lambda row: row['bytes_reduced']['statistics']),
)
TARGET_COLUMNS = (
    ('variant', itemgetter('variant')),
    ('quantity', itemgetter('quantity')),
    ('target', lambda row: f'{row["target"]:.2f}'),
    ('clock', lambda row: show_ratio(row['clock'])),
    ('met', lambda row: VERDICTS[row['clock']['met']]),
    ('CPU time', lambda row: show_ratio(row['cpu_time'])),
    ('met', lambda row: VERDICTS[row['cpu_time']['met']]),
)
MEMORY_COLUMNS = (
    ('variant', itemgetter('variant')),
    ('own memory, MB', lambda row: report.megabytes(row['own'])),
    ('buckets in flight, MB', lambda row: report.megabytes(row['in_flight'])),
    ('no more than those', lambda row: VERDICTS[row['met']]),
)


def describe(result: dict) -> str:
    """Return the result as Markdown."""
    machine, settings = result['environment'], result['settings']
    size = settings['size']
    if result['memory_targets']:
        memory_table = report.table(MEMORY_COLUMNS, result['memory_targets'])
    else:
        memory_table = (
            'Memory: not measured, this torch does not tell when it is freed.'
        )
    return '\n\n'.join(
        [
            f'# Overhead: {result["model"]}, {settings["optimizer"]}',
            f'{machine["ranks"]} {report.describe_machine(machine)}. '
            f'{settings["images"]} image(s) of {size} x {size} on each rank, '
            f'{settings["rounds"]} rounds. {result["trainable_parameters"]:,} '
            f'trainable parameters in {len(result["modules"])} modules, '
            f'{len(result["buckets"])} buckets.',
            report.table(VARIANT_COLUMNS, result['variants']),
            'Ratios are to the mean of the two plain copies, which are the same thing '
            'twice: how far theirs lie from 1 is the noise of this machine. CPU time '
            'is that of all threads of all ranks; other programs hardly lengthen it, '
            'but it knows nothing of waiting.',
            f'Amortized: {INTERVAL - 1} updates without a measurement and one with.',
            report.table(TARGET_COLUMNS, result['targets']),
            memory_table,
        ]
    )


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--model', nargs='+', choices=list(DEFAULTS), default=list(DEFAULTS)
    )
    parser.add_argument('--ranks', type=int, default=2)
    parser.add_argument('--rounds', type=int, help='timed rounds')
    parser.add_argument('--warmup', type=int, default=2, help='rounds before those')
    parser.add_argument('--images', type=int, help='images per rank')
    parser.add_argument('--image-size', type=int, help='in pixels, a multiple of 32')
    parser.add_argument('--optimizer', choices=tuple(OPTIMIZERS), default='SGD')
    parser.add_argument(
        '--out', type=Path, default=report.RESULTS, help='folder of the results'
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark for each model."""
    args = parse_args(arguments)
    for model in args.model:
        size, images, rounds = DEFAULTS[model]
        settings = dict(
            rounds=args.rounds or rounds,
            warmup=args.warmup,
            images=args.images or images,
            size=args.image_size or size,
            optimizer=args.optimizer,
        )
        result = measure(model, args.ranks, settings)
        name = f'overhead_{model}_{args.optimizer.lower()}'
        report.write(args.out, name, result, describe(result))


if __name__ == '__main__':
    main()
