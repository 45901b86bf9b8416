"""What AGVM costs: seconds, bytes reduced and memory, against a plain OptimWrapper.

    python benchmarks/overhead.py --model faster-rcnn_r50 --rounds 12

All ways to train alternate within one run, in the same processes and on the same
images, each with its own copy of the model. Two of them are plain: how far their
ratios lie from 1 is the noise of the machine. Rounds in which other programs take the
cores spoil a median less than a mean, and a ratio within a round less than a ratio of
medians; so the ratios here are medians over the rounds of the ratio to the mean of
the plain ones in the same round. Runs on GPUs with NCCL where there are enough of
them, else on CPU cores with gloo.
"""

import argparse
import math
from pathlib import Path

import common
import torch
from common import Trainer
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config

MODELS = ('faster-rcnn_r50', 'digits')
# Size of an image in pixels, images per rank, and rounds.
DEFAULTS = {'faster-rcnn_r50': (320, 1, 12), 'digits': (96, 8, 40)}
# Variant, measured.
CELLS = (
    ('plain', False),
    ('plain again', False),
    ('halves', False),
    ('halves', True),
    ('replicas', False),
    ('replicas', True),
)
PLAIN = CELLS[:2]
INTERVAL = 10
# Bytes of scalars and of blocks in the cache that do not count as a copy.
SCRATCH = 5e6
TARGETS = {
    ('halves', 'unmeasured'): 1.01,
    ('replicas', 'unmeasured'): 1.01,
    ('halves', 'measured'): 1.35,
    ('replicas', 'measured'): 1.05,
    ('halves', 'amortised'): 1.04,
    ('replicas', 'amortised'): 1.01,
}


def model_settings(name: str) -> ConfigDict:
    """The model of a config, without weights to be downloaded."""
    if name == 'digits':
        root = Path(__file__).parents[1]
        model = Config.fromfile(
            root / 'configs/digits/faster-rcnn_r18_w16_fpn_agvm-sgd_b256_10e_digits.py'
        ).model
        # On CPU ranks SyncBN does not run.
        model.backbone.norm_cfg = dict(type='BN')
    else:
        model = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    model.backbone.init_cfg = None
    return model


def make_batch(seed: int, images: int, size: int, classes: int) -> dict:
    """Noise images of ``size`` pixels with three boxes each, as MMDetection's."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(seed)
    inputs, samples = [], []
    for _ in range(images):
        inputs.append(
            torch.randint(256, (3, size, size), dtype=torch.uint8, generator=generator)
        )
        corner = torch.rand(3, 2, generator=generator) * size / 2
        extent = (0.15 + 0.3 * torch.rand(3, 2, generator=generator)) * size
        shape = (size, size)
        sample = DetDataSample(
            metainfo=dict(
                img_shape=shape,
                ori_shape=shape,
                batch_input_shape=shape,
                pad_shape=shape,
                scale_factor=(1.0, 1.0),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + extent], dim=1),
            labels=torch.randint(classes, (3,), generator=generator),
        )
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def measure_rank(
    settings: dict,
    *,
    rounds: int,
    warmup: int,
    images: int,
    size: int,
    optimizer: str,
) -> dict:
    """All variants on this rank."""
    from mmdet.registry import MODELS as REGISTRY
    from mmdet.utils import register_all_modules

    register_all_modules()
    classes = settings['roi_head']['bbox_head']['num_classes']
    trainers = {}
    for variant in dict.fromkeys(variant for variant, _ in CELLS):
        torch.manual_seed(0)
        model = REGISTRY.build(settings)
        model.init_weights()
        estimator = None if variant.startswith('plain') else variant
        trainers[variant] = Trainer(model, estimator, optimizer)
    rank = torch.distributed.get_rank()

    def batch_of(turn: int) -> dict:
        return make_batch(1000 * turn + rank, images, size, classes)

    seconds = common.alternate(trainers, CELLS, batch_of, rounds=rounds, warmup=warmup)
    # What follows the memory and counts the bytes would take time, so not before.
    batch = batch_of(0)
    reduced = {
        (variant, measured): trainers[variant].reduced_bytes(batch, measured=measured)
        for variant, measured in CELLS
    }
    device_peaks = {
        (variant, measured): common.device_peak(
            trainers[variant], batch, measured=measured
        )
        for variant, measured in CELLS
    }
    estimators = ('halves', 'replicas')
    memory = {}
    if common.storages_tell():
        memory = {
            variant: common.estimator_memory(trainers[variant], batch)
            for variant in estimators
        }
    plain = trainers['plain']
    parameters = [p for p in plain.ddp.parameters() if p.requires_grad]
    return dict(
        seconds=seconds,
        reduced=reduced,
        memory=memory,
        device_peaks=device_peaks,
        variances={v: trainers[v].wrapper.variances for v in estimators},
        modules={
            name: sum(
                p.numel()
                for group in trainers['halves'].wrapper.optimizer.param_groups
                for p in group['params']
                if group['module'] == name and p.requires_grad
            )
            for name in trainers['halves'].estimator.module_names
        },
        trainable_parameters=sum(p.numel() for p in parameters),
        gradient_bytes=sum(p.numel() * p.element_size() for p in parameters),
        buckets=plain.bucket_bytes(),
    )


def measure(
    model: str,
    *,
    ranks: int,
    rounds: int,
    warmup: int = 2,
    images: int | None = None,
    size: int | None = None,
    optimizer: str = 'SGD',
) -> dict:
    """Run the benchmark.

    Args:
        model (str): One of ``MODELS``.
        ranks (int): Number of ranks, at least 2.
        rounds (int): Times that every variant takes an update.
        warmup (int): Rounds before those. Defaults to 2.
        images (int, optional): Images per rank. Defaults to the model's own.
        size (int, optional): Their size in pixels. Defaults to the model's own.
        optimizer (str): 'SGD' or 'AdamW'. Defaults to 'SGD'.

    Returns:
        dict: What is written as JSON; seconds, bytes and plain ratios.
    """
    settings = dict(
        rounds=rounds,
        warmup=warmup,
        images=images or DEFAULTS[model][1],
        size=size or DEFAULTS[model][0],
        optimizer=optimizer,
    )
    by_rank = common.run_on_ranks(
        _rank_of, ranks, model_settings(model), settings, preload=PRELOAD
    )
    first = by_rank[0]
    times = common.compared([result['seconds'] for result in by_rank], plain=PLAIN)
    variants = []
    for variant, measured in CELLS:
        row = dict(
            variant=variant,
            measured=measured,
            **times[variant, measured],
            bytes_reduced=first['reduced'][variant, measured],
            peak_bytes_on_gpu=first['device_peaks'][variant, measured],
        )
        if measured and common.storages_tell():
            row['memory'] = {
                key: max(result['memory'][variant][key] for result in by_rank)
                for key in first['memory'][variant]
            }
        variants.append(row)
    return dict(
        benchmark='overhead',
        model=model,
        settings=settings,
        environment=common.environment(ranks),
        modules=first['modules'],
        trainable_parameters=first['trainable_parameters'],
        gradient_bytes=first['gradient_bytes'],
        buckets=first['buckets'],
        variances=first['variances'],
        variants=variants,
        targets=compare(variants, rounds),
        memory_targets=compare_memory(variants),
    )


PRELOAD = ('mmdet.models', 'mmdet.structures', 'agvm_mm')


def _rank_of(model: dict, settings: dict) -> dict:
    return measure_rank(model, **settings)


def compare(variants: list[dict], rounds: int) -> list[dict]:
    """Each target beside what was found, by the clock and by CPU time.

    A ratio's uncertainty is twice the standard error of a median; where that leaves
    open on which side of the target it lies, 'met' is None.
    """
    found = []
    for (variant, updates), target in TARGETS.items():
        row = dict(variant=variant, quantity=f'ratio, {updates}', target=target)
        for clock, key in (('clock', 'ratio'), ('cpu_time', 'cpu_ratio')):
            by_kind = {
                r['measured']: uncertain(r[key], rounds)
                for r in variants
                if r['variant'] == variant
            }
            if updates == 'amortised':
                (low, low_error), (high, high_error) = by_kind[False], by_kind[True]
                share = 1 / INTERVAL
                value = (1 - share) * low + share * high
                error = math.hypot((1 - share) * low_error, share * high_error)
            else:
                value, error = by_kind[updates == 'measured']
            met = None if abs(value - target) < error else value <= target
            row[clock] = dict(found=value, uncertainty=error, met=met)
        found.append(row)
    return found


def uncertain(ratio: dict[str, float], rounds: int) -> tuple[float, float]:
    """A median and twice its standard error, from the quartiles.

    For a normal distribution the standard error of the median is 1.253 sigma /
    sqrt(n), and the quartiles lie 1.349 sigma apart.
    """
    width = ratio['quartile_3'] - ratio['quartile_1']
    return ratio['median'], 2 * 1.253 / 1.349 * width / math.sqrt(rounds)


def compare_memory(variants: list[dict]) -> list[dict]:
    """The estimators' own memory beside the buckets in flight, where torch tells."""
    return [
        dict(
            variant=row['variant'],
            **row['memory'],
            # Beside copies of buckets there are scalars, and blocks that fit a cache.
            met=row['memory']['own'] <= row['memory']['in_flight'] + SCRATCH,
        )
        for row in variants
        if 'memory' in row
    ]


def describe(result: dict) -> str:
    """The result as Markdown."""
    machine, settings = result['environment'], result['settings']
    rows = []
    for row in result['variants']:
        ratio = row['ratio']
        rows.append(
            (
                row['variant'],
                'yes' if row['measured'] else 'no',
                f'{row["seconds"]["median"]:.3f}',
                f'{ratio["median"]:.3f}',
                f'{ratio["quartile_1"]:.3f} to {ratio["quartile_3"]:.3f}',
                f'{row["cpu_ratio"]["median"]:.3f}',
                common.megabytes(row['bytes_reduced']['gradients']),
                row['bytes_reduced']['statistics'],
            )
        )
    header = (
        'variant',
        'measured',
        'seconds',
        'ratio',
        'quartiles',
        'ratio of CPU time',
        'gradients reduced, MB',
        'other, bytes',
    )
    verdict = {True: 'yes', False: 'NO', None: 'within uncertainty'}
    targets = common.table(
        ('variant', 'quantity', 'target', 'clock', 'met', 'CPU time', 'met'),
        [
            (
                row['variant'],
                row['quantity'],
                f'{row["target"]:.2f}',
                *(
                    text
                    for key in ('clock', 'cpu_time')
                    for text in (
                        f'{row[key]["found"]:.3f} +- {row[key]["uncertainty"]:.3f}',
                        verdict[row[key]['met']],
                    )
                ),
            )
            for row in result['targets']
        ],
    )
    memory_targets = common.table(
        ('variant', 'own memory, MB', 'buckets in flight, MB', 'no more than those'),
        [
            (
                row['variant'],
                common.megabytes(row['own']),
                common.megabytes(row['in_flight']),
                verdict[row['met']],
            )
            for row in result['memory_targets']
        ],
    )
    size = settings['size']
    return '\n'.join(
        [
            f'# Overhead: {result["model"]}, {settings["optimizer"]}',
            '',
            f'{machine["ranks"]} {machine["backend"]} ranks on {machine["device"]} '
            f'({machine["cores"]} cores, load average at the end '
            f'{machine["load_average"][0]}), torch {machine["torch"]}, '
            f'{machine["date"]}. {settings["images"]} image(s) of {size} x {size} on '
            f'each rank, {settings["rounds"]} rounds. '
            f'{result["trainable_parameters"]:,} trainable parameters in '
            f'{len(result["modules"])} modules, {len(result["buckets"])} buckets.',
            '',
            common.table(header, rows),
            '',
            'Ratios are to the mean of the two plain copies, which are the same thing '
            'twice: how far theirs lie from 1 is the noise of this machine. CPU time '
            'is that of all threads of all ranks; other programs hardly lengthen it, '
            'but it knows nothing of waiting.',
            '',
            f'Amortised: {INTERVAL - 1} updates without a measurement and one with.',
            '',
            targets,
            '',
            memory_targets
            if result['memory_targets']
            else 'Memory: not measured, this torch does not tell when it is freed.',
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--model', nargs='+', choices=MODELS, default=list(MODELS))
    parser.add_argument('--ranks', type=int, default=2)
    parser.add_argument('--rounds', type=int, help='timed rounds')
    parser.add_argument('--warmup', type=int, default=2, help='rounds before those')
    parser.add_argument('--images', type=int, help='images per rank')
    parser.add_argument('--image-size', type=int, help='in pixels, a multiple of 32')
    parser.add_argument('--optimizer', choices=('SGD', 'AdamW'), default='SGD')
    parser.add_argument(
        '--out', type=Path, default=common.RESULTS, help='folder of the results'
    )
    args = parser.parse_args(arguments)
    for model in args.model:
        result = measure(
            model,
            ranks=args.ranks,
            rounds=args.rounds or DEFAULTS[model][2],
            warmup=args.warmup,
            images=args.images,
            size=args.image_size,
            optimizer=args.optimizer,
        )
        name = f'overhead_{model}_{args.optimizer.lower()}'
        common.write(args.out, name, result, describe(result))


if __name__ == '__main__':
    main()
