"""Memory and time of DDP, ZeRO-1 and FSDP2 on one detector.

    python benchmarks/sharding.py --ranks 2 4

Memory is that of a run of its own for each engine. Times are those of all engines in
turns within one run, measured and unmeasured, on the same images, by `replicas`.
"""

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
from common import report
from common.memory import reset_peak, resident
from torch.optim import Optimizer

from agvm_mm.estimators.reductions import local
from agvm_mm.sharding.state import stepping
from gpu_check import tables
from gpu_check.counts import device_peak
from gpu_check.detectors import batches, build_detector
from gpu_check.engines import ENGINES, NAMES
from gpu_check.ranks import Ranks
from gpu_check.trainers import OPTIMIZERS, Trainer, measure_cells, quartiles

ESTIMATOR = 'replicas'
MODEL = 'faster-rcnn_r50'
# Of DDP's parameters, gradients and moments at 4 ranks.
MOST_STATE = 0.30
# Of the CPU time of an unmeasured update.
MOST_TIME = 1.05


def build_trainer(engine: str, settings: dict) -> Trainer:
    """Build the trainer of an engine."""
    model = build_detector(settings['model'])
    return Trainer(model, ESTIMATOR, settings['optimizer'], engine)


def measure_memory(engine: str, settings: dict) -> dict:
    """Run two updates, and return what this rank holds, in numbers and in bytes."""
    before = resident('VmRSS')
    trainer = build_trainer(engine, settings)
    parameters = [p for p in trainer.ddp.parameters() if p.requires_grad]
    found = dict(parameters=sum(local(p).numel() for p in parameters))

    def count(optimizer: Optimizer, *_: object) -> None:
        found['gradients'] = sum(local(p.grad).numel() for p in parameters)

    trainer.wrapper.optimizer.register_step_pre_hook(count)
    batch = batches(trainer, settings)(0)
    reset_peak()
    for measured in (False, True):
        trainer.update(batch, measured)
    found['moments'] = sum(
        local(value).numel()
        for state in stepping(trainer.wrapper.optimizer).state.values()
        for value in state.values()
        if value.dim()
    )
    peaks = dict(before=before, peak=resident('VmHWM'))
    peaks['peak_on_gpu'] = device_peak(lambda: trainer.update(batch, measured=True))
    return found | peaks | dict(trainable=sum(p.numel() for p in parameters))


def measure_times(settings: dict) -> dict:
    """Return the seconds of each cell on this rank."""
    trainers = {engine: build_trainer(engine, settings) for engine in ENGINES}
    batch_of = batches(trainers['ddp'], settings)
    rounds = {key: settings[key] for key in ('rounds', 'warmup')}
    return measure_cells(trainers, batch_of, **rounds)['seconds']


def measure(ranks: int, settings: dict) -> list[dict]:
    """Return a row for each engine on a number of ranks."""
    machines = Ranks.with_own_gpus(ranks)
    by_rank = machines.run(measure_times, settings)
    # Of the slowest rank; of all ranks together.
    clock, cpu = (
        {
            cell: reduce([[pair[part] for pair in found[cell]] for found in by_rank], 0)
            for cell in by_rank[0]
        }
        for part, reduce in ((0, np.max), (1, np.sum))
    )
    rows = []
    for engine in ENGINES:
        held = machines.run(measure_memory, engine, settings)
        keys = ('parameters', 'gradients', 'moments')
        # In units of the parameters, on the rank that has most.
        units = {key: max(each[key] for each in held) for key in keys}
        units = {key: value / held[0]['trainable'] for key, value in units.items()}
        plain, measured = (engine, False), (engine, True)
        rows.append(
            dict(
                ranks=ranks,
                engine=engine,
                trainable=held[0]['trainable'],
                **units,
                # All ranks are the same size but for what ZeRO-1 gives each.
                state=sum(sum(each[key] for key in keys) for each in held)
                / ranks
                / held[0]['trainable'],
                before=max(each['before'] for each in held),
                peak=max(each['peak'] for each in held),
                peak_on_gpu=held[0]['peak_on_gpu'],
                seconds=quartiles(clock[plain]),
                cpu_seconds=quartiles(cpu[plain]),
                cpu_ratio_to_ddp=quartiles(cpu[plain] / cpu['ddp', False]),
                ratio=quartiles(clock[measured] / clock[plain]),
                cpu_ratio=quartiles(cpu[measured] / cpu[plain]),
            )
        )
    return rows


COLUMNS = (
    ('ranks', itemgetter('ranks')),
    ('engine', lambda row: NAMES[row['engine']]),
    ('parameters', lambda row: f'{row["parameters"]:.2f}'),
    ('gradients', lambda row: f'{row["gradients"]:.2f}'),
    ('moments', lambda row: f'{row["moments"]:.2f}'),
    ('sum, mean of the ranks', lambda row: f'{row["state"]:.2f}'),
    ('peak of the process, MB', lambda row: tables.megabytes(row['peak'])),
    ('CPU time, s', tables.median('cpu_seconds', 2)),
    ('to DDP', tables.median('cpu_ratio_to_ddp', 2)),
    ('measured to unmeasured', tables.median('cpu_ratio', 3)),
    ('quartiles', lambda row: show_quartiles(row['cpu_ratio'])),
)


def show_quartiles(ratio: dict) -> str:
    """Format the quartiles of a ratio."""
    return f'{ratio["quartile_1"]:.3f} to {ratio["quartile_3"]:.3f}'


def verdicts(rows: Sequence[dict]) -> list[str]:
    """Return the goals, each with what was found."""
    state = {(row['ranks'], row['engine']): row['state'] for row in rows}
    lines = [
        f'- FSDP2 at 4 ranks holds at most {MOST_STATE} of what DDP does: '
        f'{state[4, "fsdp"] / state[4, "ddp"]:.2f}.'
        for ranks, engine in state
        if (ranks, engine) == (4, 'fsdp')
    ]
    worst = max(row['cpu_ratio']['median'] for row in rows)
    return [
        *lines,
        f'- A measured update takes at most {MOST_TIME} times the CPU time of an '
        f'unmeasured one: {worst:.3f} at most.',
    ]


def describe(result: dict) -> str:
    """Return the result as Markdown."""
    machine, settings = result['environment'], result['settings']
    rows = result['rows']
    size = settings['size']
    return '\n\n'.join(
        [
            f'# Sharding: {settings["model"]}, {settings["optimizer"]}, {ESTIMATOR}',
            f'Up to {machine["ranks"]} {report.describe_machine(machine)}. '
            f'{settings["images"]} image(s) of {size} x {size} on each rank, '
            f'{settings["rounds"]} rounds. {rows[0]["trainable"]:,} trainable '
            'parameters.',
            tables.table(COLUMNS, rows),
            'Parameters, gradients and moments are in units of the trainable '
            'parameters, on the rank that has most. The peak is that of the resident '
            'memory in two updates; a process without a model has '
            f'{tables.megabytes(max(row["before"] for row in rows))} MB. CPU time is '
            'that of an unmeasured update, all ranks together; ratios are medians over '
            'the rounds of ratios within a round.',
            '\n'.join(verdicts(rows)),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = report.make_parser(__doc__)
    models = (MODEL, 'digits')
    parser.add_argument('--model', choices=models, default=MODEL)
    parser.add_argument('--optimizer', choices=tuple(OPTIMIZERS), default='AdamW')
    parser.add_argument('--ranks', type=int, nargs='+', default=[2, 4])
    parser.add_argument('--rounds', type=int, default=6, help='timed rounds')
    parser.add_argument('--warmup', type=int, default=1, help='rounds before those')
    parser.add_argument('--images', type=int, default=1, help='images per rank')
    parser.add_argument('--image-size', type=int, default=320, help='in pixels')
    args = parser.parse_args(arguments)
    settings = dict(
        model=args.model,
        optimizer=args.optimizer,
        rounds=args.rounds,
        warmup=args.warmup,
        images=args.images,
        size=args.image_size,
        shape=(args.image_size,) * 2,
    )
    result = dict(
        benchmark='sharding',
        settings=settings,
        rows=[row for ranks in args.ranks for row in measure(ranks, settings)],
        environment=report.environment(max(args.ranks)),
    )
    name = f'sharding_{args.model}_{args.optimizer.lower()}'
    report.write(args.out, name, result, describe(result))


if __name__ == '__main__':
    main()
