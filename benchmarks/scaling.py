"""Growth of AGVM's cost with ranks, parameters, modules and micro-batches.

    python benchmarks/scaling.py --rounds 8

The networks are stacks of linear layers on one vector. They do little more than reduce
the gradient, so the ratios are the worst case. A detector computes for longer than it
communicates, and its ratios are far lower; see overhead.py.
"""

from collections.abc import Iterator, Sequence
from operator import itemgetter

import torch
from common import report
from mmengine.model import BaseModel
from torch import Tensor, nn

from gpu_check import tables
from gpu_check.ranks import Ranks
from gpu_check.trainers import VARIANTS, build_trainers, measure_cells, merge_ranks


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
        ] + [micro_batches(3)]
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
        *map(micro_batches, (8, 64, 512)),
    ]


def micro_batches(count: int) -> dict:
    """Return a point of one rank that accumulates."""
    sweep = 'micro-batches'
    return dict(
        sweep=sweep, ranks=1, modules=4, layers=4, width=64, micro_batches=count
    )


def measure_rank(point: dict, rounds: int, warmup: int) -> dict:
    """Measure all variants of one point on this rank."""
    shape = point['modules'], point['layers'], point['width']
    count = point.get('micro_batches')
    trainers = build_trainers(lambda: Stack(*shape), VARIANTS, micro_batches=count)
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


POINT_COLUMNS = (
    ('ranks', itemgetter('ranks')),
    ('modules', itemgetter('modules')),
    ('parameters', lambda row: f'{row["parameters"]:,}'),
    ('micro-batches', itemgetter('micro_batches')),
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
        ]
    )


def describe_sweeps(points: list[dict]) -> Iterator[str]:
    """Yield the title, the table and the notes of each sweep that was measured."""
    for sweep in ('ranks', 'parameters', 'modules', 'micro-batches'):
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
    result = dict(
        benchmark='scaling',
        rounds=args.rounds,
        environment=report.environment(args.ranks),
        points=found,
    )
    report.write(args.out, 'scaling', result, describe(result))


if __name__ == '__main__':
    main()
