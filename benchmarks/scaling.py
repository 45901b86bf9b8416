"""How AGVM's cost grows with ranks, parameters and modules, and on paper to 640 GPUs.

    python benchmarks/scaling.py --rounds 8

The networks are stacks of linear layers on one vector: next to no work but for the
reduction of the gradient, so that ratios here are the worst there can be. A detector
that computes for longer than it communicates lies far below; see overhead.py.
"""

import argparse
import json
from pathlib import Path

import common
import torch
from common import Trainer
from mmengine.model import BaseModel
from torch import nn

CELLS = (
    ('plain', False),
    ('halves', False),
    ('halves', True),
    ('replicas', False),
    ('replicas', True),
)
# One rank has nobody to be compared with but its own micro-batches.
MICRO_BATCHES = 2
INTERVALS = (10, 5, 1)
GPUS = (8, 64, 256, 640)
# Published speeds in bytes per second and direction, one link for each GPU.
LINKS = {
    'NVLink 4 (H100), 450 GB/s': 450e9,
    'InfiniBand NDR, 400 Gb/s': 50e9,
    'InfiniBand HDR, 200 Gb/s': 25e9,
    'Ethernet, 25 Gb/s': 3.125e9,
}
# NVLink 4 joins the 8 GPUs of a node.
LARGEST = {'NVLink 4 (H100), 450 GB/s': 8}
# Of one message, in seconds. An assumption; it matters for the scalars only.
LATENCY = 5e-6
# Faster R-CNN R50-FPN, where overhead.py has not been run.
GRADIENT_BYTES = 166_110_848


class Stack(BaseModel):
    """Linear layers one after the other, split evenly into modules.

    Args:
        modules (int): 'backbone', 'head1', 'head2', ...
        layers (int): Linear layers of each.
        width (int): Inputs and outputs of each layer.
    """

    def __init__(self, modules: int, layers: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names = ['backbone', *(f'head{i}' for i in range(1, modules))]
        for name in self.names:
            stack = [nn.Linear(width, width) for _ in range(layers)]
            setattr(self, name, nn.Sequential(*stack))

    def forward(self, inputs, data_samples=None, mode='loss') -> dict:
        """Half the squared length of the output."""
        x = torch.stack(inputs)
        for name in self.names:
            x = getattr(self, name)(x)
        return dict(loss=x.square().mean() / 2)


def points(largest: int, quick: bool) -> list[dict]:
    """What is measured: a sweep, ranks, modules, layers of each, their width."""
    if quick:
        return [
            dict(sweep=sweep, ranks=ranks, modules=2, layers=2, width=16)
            for sweep, ranks in (('ranks', 1), ('modules', 2))
        ]
    ranks = [n for n in (1, 2, 4, 8) if n <= largest]
    return [
        *(dict(sweep='ranks', ranks=n, modules=4, layers=4, width=256) for n in ranks),
        *(
            dict(sweep='parameters', ranks=2, modules=4, layers=4, width=width)
            for width in (128, 256, 512, 1024)
        ),
        *(
            dict(sweep='modules', ranks=2, modules=n, layers=128 // n, width=128)
            for n in (2, 8, 32, 128)
        ),
    ]


def measure_rank(point: dict, rounds: int, warmup: int) -> dict:
    """All variants of one point on this rank."""
    accumulation = MICRO_BATCHES if point['ranks'] == 1 else 1
    shape = point['modules'], point['layers'], point['width']
    trainers = {
        variant: Trainer(
            Stack(*shape),
            None if variant == 'plain' else variant,
            accumulation=accumulation,
        )
        for variant in ('plain', 'halves', 'replicas')
    }
    rank = torch.distributed.get_rank()

    def batch_of(turn: int) -> dict:
        generator = torch.Generator().manual_seed(1000 * turn + rank)
        return dict(inputs=[torch.randn(point['width'], generator=generator)])

    seconds = common.alternate(trainers, CELLS, batch_of, rounds=rounds, warmup=warmup)
    return dict(
        seconds=seconds,
        reduced={
            (variant, measured): trainers[variant].reduced_bytes(
                batch_of(0), measured=measured
            )
            for variant, measured in CELLS
        },
        parameters=sum(p.numel() for p in trainers['plain'].ddp.parameters()),
    )


def measure(point: dict, rounds: int, warmup: int) -> dict:
    """One point over all its ranks."""
    by_rank = common.run_on_ranks(
        measure_rank, point['ranks'], point, rounds, warmup, preload=('agvm_mm',)
    )
    times = common.compared([result['seconds'] for result in by_rank], plain=CELLS[:1])
    reduced = by_rank[0]['reduced']
    return dict(
        point,
        parameters=by_rank[0]['parameters'],
        micro_batches=MICRO_BATCHES if point['ranks'] == 1 else 1,
        variants=[
            dict(
                variant=variant,
                measured=measured,
                **times[variant, measured],
                bytes_reduced=reduced[variant, measured],
            )
            for variant, measured in CELLS
        ],
    )


def ring_seconds(bytes_: float, gpus: int, bandwidth: float) -> float:
    """A ring all-reduce: each GPU sends 2 (n - 1) / n times the bytes."""
    return 2 * (gpus - 1) / gpus * bytes_ / bandwidth


def tree_seconds(gpus: int) -> float:
    """An all-reduce of a few scalars: up a binary tree and down again."""
    return 2 * (gpus - 1).bit_length() * LATENCY


def compute(gradient_bytes: int) -> list[dict]:
    """Reductions on large machines, from published link speeds; nothing measured.

    Args:
        gradient_bytes (int): Reduced in a plain update.
    """
    rows = []
    for link, bandwidth in LINKS.items():
        for gpus in GPUS:
            if gpus > LARGEST.get(link, gpus):
                continue
            gradient = ring_seconds(gradient_bytes, gpus, bandwidth)
            statistics = tree_seconds(gpus)
            rows.append(
                dict(
                    link=link,
                    gpus=gpus,
                    plain_seconds=gradient,
                    halves_extra_seconds=gradient + statistics,
                    replicas_extra_seconds=statistics,
                    halves_extra_per_update={
                        interval: (gradient + statistics) / interval
                        for interval in INTERVALS
                    },
                )
            )
    return rows


def gradient_bytes_of(results: Path) -> tuple[int, str]:
    """Bytes of a plain update of Faster R-CNN, and where the figure is from."""
    path = results / 'overhead_faster-rcnn_r50_sgd.json'
    if path.exists():
        plain = json.loads(path.read_text())['variants'][0]
        return plain['bytes_reduced']['gradients'], 'as overhead.py counted them'
    return GRADIENT_BYTES, 'its trainable parameters in float32'


def describe(result: dict) -> str:
    """The result as Markdown."""
    machine = result['environment']
    titles = {
        'ranks': 'Ranks',
        'parameters': 'Parameters',
        'modules': 'Modules',
    }
    parts = [
        '# Scaling',
        '',
        f'{machine["backend"]} ranks on {machine["device"]} ({machine["cores"]} cores, '
        f'load average at the end {machine["load_average"][0]}), torch '
        f'{machine["torch"]}, {machine["date"]}; {result["rounds"]} rounds. Stacks of '
        'linear layers that hardly compute: the worst there can be. Ratios are to '
        'the plain OptimWrapper in the same round, medians, of the clock and of CPU '
        f'time over all ranks. More ranks than the {machine["cores"]} cores take '
        'turns on them.',
    ]
    for sweep, title in titles.items():
        found = [point for point in result['points'] if point['sweep'] == sweep]
        if not found:
            continue
        rows = []
        for point in found:
            for row in point['variants']:
                reduced = row['bytes_reduced']
                rows.append(
                    (
                        point['ranks'],
                        point['modules'],
                        f'{point["parameters"]:,}',
                        row['variant'],
                        'yes' if row['measured'] else 'no',
                        f'{row["seconds"]["median"] * 1e3:.1f}',
                        f'{row["ratio"]["median"]:.2f}',
                        f'{row["cpu_ratio"]["median"]:.2f}',
                        f'{reduced["gradients"]:,}',
                        reduced['statistics'],
                    )
                )
        header = (
            'ranks',
            'modules',
            'parameters',
            'variant',
            'measured',
            'ms',
            'ratio',
            'CPU ratio',
            'gradients reduced, bytes',
            'other, bytes',
        )
        parts += ['', f'## {title}', '', common.table(header, rows)]
        if sweep == 'ranks':
            parts += [
                '',
                f'One rank compares its {MICRO_BATCHES} micro-batches, also those of '
                'the plain update; it reduces nothing that leaves the process.',
            ]
    rows = [
        (
            row['link'],
            row['gpus'],
            f'{row["plain_seconds"] * 1e3:.2f}',
            f'{row["halves_extra_seconds"] * 1e3:.2f}',
            *(f'{v * 1e3:.2f}' for v in row['halves_extra_per_update'].values()),
            f'{row["replicas_extra_seconds"] * 1e3:.2f}',
        )
        for row in result['computed']
    ]
    header = (
        'link',
        'GPUs',
        'plain, ms',
        'halves extra at a measured update, ms',
        *(f'per update at interval {interval}, ms' for interval in INTERVALS),
        'replicas extra, ms',
    )
    return '\n'.join(
        [
            *parts,
            '',
            '## On paper: computed, not measured',
            '',
            f'{result["gradient_bytes"] / 1e6:.1f} MB of gradient of Faster R-CNN '
            f'R50-FPN ({result["gradient_bytes_from"]}). A ring all-reduce takes '
            '2 (n - 1) / n x bytes / speed, with the published speed of one link for '
            'each GPU and direction; the statistics, a few scalars, take 2 log2(n) '
            f'messages of {LATENCY * 1e6:.0f} microseconds (an assumption). Real '
            'links reach less, and DDP hides reductions behind the backward pass, '
            'the additional ones too.',
            '',
            common.table(header, rows),
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--ranks', type=int, default=8, help='the most ranks to start')
    parser.add_argument('--rounds', type=int, default=8, help='timed rounds')
    parser.add_argument('--warmup', type=int, default=2, help='rounds before those')
    parser.add_argument('--quick', action='store_true', help='tiny networks, 2 ranks')
    parser.add_argument(
        '--out', type=Path, default=common.RESULTS, help='folder of the results'
    )
    args = parser.parse_args(arguments)
    found = [
        measure(point, args.rounds, args.warmup)
        for point in points(args.ranks, args.quick)
    ]
    gradient_bytes, source = gradient_bytes_of(args.out)
    result = dict(
        benchmark='scaling',
        rounds=args.rounds,
        environment=common.environment(args.ranks),
        points=found,
        gradient_bytes=gradient_bytes,
        gradient_bytes_from=source,
        computed=compute(gradient_bytes),
    )
    common.write(args.out, 'scaling', result, describe(result))


if __name__ == '__main__':
    main()
