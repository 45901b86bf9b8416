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

import math
from collections.abc import Sequence
from operator import itemgetter

from common import report
from common.memory import CAN_FOLLOW_STORAGES, estimator_memory

from agvm_mm.estimators import ESTIMATORS
from gpu_check import tables
from gpu_check.counts import device_peak
from gpu_check.detectors import build_detectors
from gpu_check.ranks import Ranks
from gpu_check.trainers import OPTIMIZERS, measure_cells, merge_ranks, updates_of

# Size of an image in pixels, images per rank, and rounds.
DEFAULTS = {'faster-rcnn_r50': (320, 1, 12), 'digits': (96, 8, 40)}
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
# Shares of updates without a measurement and with one.
SHARES = dict(
    unmeasured=(1, 0), measured=(0, 1), amortized=(1 - 1 / INTERVAL, 1 / INTERVAL)
)


def measure_rank(model: str, settings: dict) -> dict:
    """Measure all variants on this rank, and facts about the model."""
    shape = (settings['size'],) * 2
    trainers, batch_of = build_detectors(settings | dict(model=model, shape=shape))
    rounds = {key: settings[key] for key in ('rounds', 'warmup')}
    measured = measure_cells(trainers, batch_of, **rounds)
    batch = batch_of(0)
    updates = updates_of(trainers, batch)
    ddp, agvm = trainers['plain'].ddp, trainers['halves'].wrapper.agvm
    # The buckets as rebuilt at the first update.
    log = ddp._get_ddp_logging_data()
    buckets = log.get('rebuilt_bucket_sizes') or log['bucket_sizes']
    return dict(
        measured,
        device_peaks={cell: device_peak(update) for cell, update in updates.items()},
        memory={
            name: estimator_memory(trainers[name], batch)
            for name in (ESTIMATORS if CAN_FOLLOW_STORAGES else ())
        },
        facts=dict(
            modules={
                module: sum(p.numel() for p in own)
                for module, own in agvm.parameters.items()
            },
            trainable_parameters=sum(
                p.numel() for p in ddp.parameters() if p.requires_grad
            ),
            gradient_bytes=trainers['plain'].gradient_bytes(),
            buckets=[int(size) for size in buckets.split(',')],
            variances={
                name: trainers[name].wrapper.agvm.variances for name in ESTIMATORS
            },
        ),
    )


def measure(model: str, ranks: int, settings: dict) -> dict:
    """Run the benchmark of a model; return the result as written to the JSON file."""
    by_rank = Ranks.with_own_gpus(ranks).run(measure_rank, model, settings)
    first = by_rank[0]
    variants = merge_ranks(by_rank)
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
        variants=variants,
        targets=compare_times(variants, settings['rounds']),
        memory_targets=[
            dict(
                variant=row['variant'],
                **row['memory'],
                met=row['memory']['own'] <= row['memory']['in_flight'] + SCRATCH,
            )
            for row in variants
            if 'memory' in row
        ],
    )


def compare_times(variants: list[dict], rounds: int) -> list[dict]:
    """Compare each target with the ratios of wall-clock time and of CPU time."""
    rows = {(row['variant'], row['measured']): row for row in variants}
    found = []
    for (variant, updates), target in TARGETS.items():
        cells = rows[variant, False], rows[variant, True]
        times = {
            clock: compare_ratio(
                target, SHARES[updates], [x[key] for x in cells], rounds
            )
            for clock, key in (('clock', 'ratio'), ('cpu_time', 'cpu_ratio'))
        }
        quantity = f'ratio, {updates}'
        found.append(dict(variant=variant, quantity=quantity, target=target, **times))
    return found


def compare_ratio(
    target: float, shares: Sequence[float], ratios: Sequence[dict], rounds: int
) -> dict:
    """Compare a target with the ratio of updates of which some are measured.

    For a normal distribution the standard error of the median is 1.253 sigma /
    sqrt(n), and the quartiles are 1.349 sigma apart.

    Shares and quartiles of ratios are those of unmeasured and of measured updates.
    'uncertainty' is twice the standard error of a median. 'met' is None if the target
    is within it.
    """
    value, errors = 0.0, []
    for share, ratio in zip(shares, ratios, strict=True):
        value += share * ratio['median']
        width = ratio['quartile_3'] - ratio['quartile_1']
        errors.append(share * 2 * 1.253 / 1.349 * width / math.sqrt(rounds))
    error = math.hypot(*errors)
    met = None if abs(value - target) < error else value <= target
    return dict(found=value, uncertainty=error, met=met)


VERDICTS = {True: 'yes', False: 'NO', None: 'within uncertainty'}


def show_ratio(ratio: dict) -> str:
    """Format a ratio of :func:`compare_ratio`."""
    return f'{ratio["found"]:.3f} +- {ratio["uncertainty"]:.3f}'


def show_quartiles(row: dict) -> str:
    """Format the quartiles of a ratio."""
    ratio = row['ratio']
    return f'{ratio["quartile_1"]:.3f} to {ratio["quartile_3"]:.3f}'


VARIANT_COLUMNS = (
    *tables.CELL_COLUMNS,
    ('seconds', tables.median('seconds', 3)),
    ('ratio', tables.median('ratio', 3)),
    ('quartiles', show_quartiles),
    ('ratio of CPU time', tables.median('cpu_ratio', 3)),
    (
        'gradients reduced, MB',
        lambda row: tables.megabytes(row['bytes_reduced']['gradients']),
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
    ('own memory, MB', lambda row: tables.megabytes(row['own'])),
    ('buckets in flight, MB', lambda row: tables.megabytes(row['in_flight'])),
    ('no more than those', lambda row: VERDICTS[row['met']]),
)


def describe(result: dict) -> str:
    """Return the result as Markdown."""
    machine, settings = result['environment'], result['settings']
    size = settings['size']
    memory = 'Memory: not measured, this torch does not report when it is freed.'
    if result['memory_targets']:
        memory = tables.table(MEMORY_COLUMNS, result['memory_targets'])
    return '\n\n'.join(
        [
            f'# Overhead: {result["model"]}, {settings["optimizer"]}',
            f'{machine["ranks"]} {report.describe_machine(machine)}. '
            f'{settings["images"]} image(s) of {size} x {size} on each rank, '
            f'{settings["rounds"]} rounds. {result["trainable_parameters"]:,} '
            f'trainable parameters in {len(result["modules"])} modules, '
            f'{len(result["buckets"])} buckets.',
            tables.table(VARIANT_COLUMNS, result['variants']),
            'Ratios are to the mean of the two plain copies, which are the same thing '
            'twice: how far theirs lie from 1 is the noise of this machine. CPU time '
            'is that of all threads of all ranks; other programs hardly lengthen it, '
            'but it knows nothing of waiting.',
            f'Amortized: {INTERVAL - 1} updates without a measurement and one with.',
            tables.table(TARGET_COLUMNS, result['targets']),
            memory,
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark for each model."""
    parser = report.make_parser(__doc__)
    models = list(DEFAULTS)
    parser.add_argument('--model', nargs='+', choices=models, default=models)
    parser.add_argument('--ranks', type=int, default=2)
    parser.add_argument('--rounds', type=int, help='timed rounds')
    parser.add_argument('--warmup', type=int, default=2, help='rounds before those')
    parser.add_argument('--images', type=int, help='images per rank')
    parser.add_argument('--image-size', type=int, help='in pixels, a multiple of 32')
    parser.add_argument('--optimizer', choices=tuple(OPTIMIZERS), default='SGD')
    args = parser.parse_args(arguments)
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
