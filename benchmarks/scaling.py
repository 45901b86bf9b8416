"""Growth of AGVM's cost with ranks, parameters and modules, and computed to 640 GPUs.

    python benchmarks/scaling.py --rounds 8

The networks are stacks of linear layers on one vector. They do little more than reduce
the gradient, so the ratios are the worst case. A detector computes for longer than it
communicates, and its ratios are far lower; see overhead.py.
"""

import json
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path

import torch
from common import report
from mmengine.model import BaseModel
from torch import Tensor, nn

from gpu_check import tables
from gpu_check.ranks import Ranks
from gpu_check.trainers import VARIANTS, build_trainers, measure_cells, merge_ranks

INTERVALS = (10, 5, 1)
GPUS = (8, 64, 256, 640)
# Published speeds in bytes per second and direction, one link for each GPU.
LINKS = {
    'NVLink 4 (H100), 450 GB/s': 450e9,
    'InfiniBand NDR, 400 Gb/s': 50e9,
    'InfiniBand HDR, 200 Gb/s': 25e9,
    'Ethernet, 25 Gb/s': 3.125e9,
}
# Most GPUs on a link: NVLink 4 connects the 8 GPUs of a node.
LARGEST = {'NVLink 4 (H100), 450 GB/s': 8}
# Seconds of one message. An assumption; it matters for the scalars only.
LATENCY = 5e-6
# Faster R-CNN R50-FPN, if overhead.py has not been run.
GRADIENT_BYTES = 166_110_848


class Stack(BaseModel):
    """Square linear layers in sequence, in modules 'backbone', 'head1', 'head2', ..."""

    def __init__(self, modules: int, layers: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names = ['backbone', *(f'head{i}' for i in range(1, modules))]
        for name in self.names:
            stack = [nn.Linear(width, width) for _ in range(layers)]
            setattr(self, name, nn.Sequential(*stack))

    def forward(
        self, inputs: list[Tensor], data_samples: None = None, mode: str = 'loss'
    ) -> dict[str, Tensor]:
        """Return half the mean square of the outputs as the loss."""
        x = torch.stack(inputs)
        for name in self.names:
            x = getattr(self, name)(x)
        return dict(loss=x.square().mean() / 2)


def points(largest: int, quick: bool) -> list[dict]:
    """Return what is measured: sweep, ranks, modules, layers of each, their width."""
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
    """Measure all variants of one point on this rank."""
    shape = point['modules'], point['layers'], point['width']
    trainers = build_trainers(lambda: Stack(*shape), VARIANTS)
    rank = torch.distributed.get_rank()

    def batch_of(turn: int) -> dict:
        generator = torch.Generator().manual_seed(1000 * turn + rank)
        return dict(inputs=[torch.randn(point['width'], generator=generator)])

    measured = measure_cells(trainers, batch_of, rounds=rounds, warmup=warmup)
    plain = trainers['plain']
    parameters = sum(p.numel() for p in plain.ddp.parameters())
    return dict(measured, parameters=parameters, micro_batches=plain.micro_batches)


def measure(point: dict, rounds: int, warmup: int) -> dict:
    """Measure one point on all its ranks."""
    ranks = Ranks.with_own_gpus(point['ranks'])
    by_rank = ranks.run(measure_rank, point, rounds, warmup)
    facts = {key: by_rank[0][key] for key in ('parameters', 'micro_batches')}
    return dict(point, **facts, variants=merge_ranks(by_rank))


def compute(gradient_bytes: int) -> list[dict]:
    """Compute the time of reductions on large machines from published link speeds.

    In a ring all-reduce each GPU sends 2 (n - 1) / n times the bytes. A few scalars go
    up a binary tree and down again.
    """
    rows = []
    for link, bandwidth in LINKS.items():
        for gpus in GPUS:
            if gpus > LARGEST.get(link, gpus):
                continue
            gradient = 2 * (gpus - 1) / gpus * gradient_bytes / bandwidth
            statistics = 2 * (gpus - 1).bit_length() * LATENCY
            extra = gradient + statistics
            rows.append(
                dict(
                    link=link,
                    gpus=gpus,
                    plain_seconds=gradient,
                    halves_extra_seconds=extra,
                    replicas_extra_seconds=statistics,
                    halves_extra_per_update={
                        str(interval): extra / interval for interval in INTERVALS
                    },
                )
            )
    return rows


def gradient_bytes_of(results: Path) -> tuple[int, str]:
    """Return the bytes of a plain update of Faster R-CNN, and their source."""
    path = results / 'overhead_faster-rcnn_r50_sgd.json'
    if path.exists():
        plain = json.loads(path.read_text())['variants'][0]
        return plain['bytes_reduced']['gradients'], 'as overhead.py counted them'
    return GRADIENT_BYTES, 'its trainable parameters in float32'


def milliseconds(title: str, key: str, interval: int | None = None) -> tables.Column:
    """Return a column of times in milliseconds; at an interval, of each update."""

    def show(row: dict) -> str:
        seconds = row[key] if interval is None else row[key][str(interval)]
        return f'{seconds * 1e3:.2f}'

    return title, show


POINT_COLUMNS = (
    ('ranks', itemgetter('ranks')),
    ('modules', itemgetter('modules')),
    ('parameters', lambda row: f'{row["parameters"]:,}'),
    *tables.CELL_COLUMNS,
    ('ms', tables.median('seconds', 1, factor=1e3)),
    ('ratio', tables.median('ratio', 2)),
    ('CPU ratio', tables.median('cpu_ratio', 2)),
    (
        'gradients reduced, bytes',
        lambda row: f'{row["bytes_reduced"]["gradients"]:,}',
    ),
    ('other, bytes', lambda row: row['bytes_reduced']['statistics']),
)
COMPUTED_COLUMNS = (
    ('link', itemgetter('link')),
    ('GPUs', itemgetter('gpus')),
    milliseconds('plain, ms', 'plain_seconds'),
    milliseconds('halves extra at a measured update, ms', 'halves_extra_seconds'),
    *(
        milliseconds(f'per update at interval {n}, ms', 'halves_extra_per_update', n)
        for n in INTERVALS
    ),
    milliseconds('replicas extra, ms', 'replicas_extra_seconds'),
)


def describe(result: dict) -> str:
    """Return the result as Markdown."""
    machine = result['environment']
    return '\n\n'.join(
        [
            '# Scaling',
            f'{report.describe_machine(machine)}; {result["rounds"]} rounds. Stacks of '
            'linear layers that hardly compute: the worst there can be. Ratios are to '
            'the plain OptimWrapper in the same round, medians, of the clock and of '
            f'CPU time over all ranks. More ranks than the {machine["cores"]} cores '
            'take turns on them.',
            *describe_sweeps(result['points']),
            '## On paper: computed, not measured',
            f'{result["gradient_bytes"] / 1e6:.1f} MB of gradient of Faster R-CNN '
            f'R50-FPN ({result["gradient_bytes_from"]}). A ring all-reduce takes '
            '2 (n - 1) / n x bytes / speed, with the published speed of one link for '
            'each GPU and direction; the statistics, a few scalars, take 2 log2(n) '
            f'messages of {LATENCY * 1e6:.0f} microseconds (an assumption). Real '
            'links reach less, and DDP hides reductions behind the backward pass, '
            'the additional ones too.',
            tables.table(COMPUTED_COLUMNS, result['computed']),
        ]
    )


def describe_sweeps(points: list[dict]) -> Iterator[str]:
    """Yield the title, the table and the notes of each sweep that was measured."""
    for sweep in ('ranks', 'parameters', 'modules'):
        rows = [
            point | row
            for point in points
            if point['sweep'] == sweep
            for row in point['variants']
        ]
        if not rows:
            continue
        yield f'## {sweep.capitalize()}'
        yield tables.table(POINT_COLUMNS, rows)
        if sweep == 'ranks':
            yield (
                'One rank compares its 2 micro-batches, also those of the plain '
                'update; it reduces nothing that leaves the process.'
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = report.make_parser(__doc__)
    parser.add_argument('--ranks', type=int, default=8, help='the most ranks to start')
    parser.add_argument('--rounds', type=int, default=8, help='timed rounds')
    parser.add_argument('--warmup', type=int, default=2, help='rounds before those')
    parser.add_argument('--quick', action='store_true', help='tiny networks, 2 ranks')
    args = parser.parse_args(arguments)
    found = [
        measure(point, args.rounds, args.warmup)
        for point in points(args.ranks, args.quick)
    ]
    gradient_bytes, source = gradient_bytes_of(args.out)
    result = dict(
        benchmark='scaling',
        rounds=args.rounds,
        environment=report.environment(args.ranks),
        points=found,
        gradient_bytes=gradient_bytes,
        gradient_bytes_from=source,
        computed=compute(gradient_bytes),
    )
    report.write(args.out, 'scaling', result, describe(result))


if __name__ == '__main__':
    main()
