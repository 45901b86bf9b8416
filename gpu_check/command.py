"""The check as a whole: its parts, their report and the exit status."""

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from agvm_mm.sharding.model import missing_methods
from demo import write_digits
from gpu_check import cost, counts, golden, parity, tables, training
from gpu_check.environment import environment
from gpu_check.ranks import Ranks

COLUMNS = (
    ('part', itemgetter('part')),
    ('ranks', itemgetter('ranks')),
    ('state', lambda row: 'PROBLEM' if row['problems'] else 'ok'),
    ('found', itemgetter('found')),
    ('s', itemgetter('seconds')),
)


class Outcome(NamedTuple):
    """What a part found, in one line; its faults, and all figures."""

    found: str
    problems: list[str] = []
    data: Any = None


def compare_golden(ranks: Ranks) -> Outcome:
    """Compare Phi and mu of the hand-computed case."""
    found = golden.golden_differences(ranks.run(golden.measure_golden))
    return compare(found, golden.TOLERANCES)


def compare_parity(ranks: Ranks) -> Outcome:
    """Compare trainings in float64 with the reference, and the ranks."""
    found = parity.parity_differences(ranks.run(parity.train_cases))
    return compare(found, dict.fromkeys(found, parity.TOLERANCE) | dict(ranks=0.0))


def compare_engines(ranks: Ranks) -> Outcome:
    """Compare trainings that are divided over the ranks with DDP."""
    if ranks.backend != 'nccl' and ranks.gpus:
        return Outcome('skipped: it needs two or more GPUs')
    lacking = missing_methods()
    engines = ['zero', *['fsdp'] * (not lacking)]
    found = parity.engine_differences(ranks.run(parity.train_engines, engines))
    tolerances = dict.fromkeys(found, parity.TOLERANCE) | dict(ranks=0.0)
    outcome = compare(found, tolerances)
    if lacking:
        note = f'FSDP2 skipped: torch {torch.__version__} lacks {lacking[0]}; '
        outcome = outcome._replace(found=note + outcome.found)
    return outcome


def compare(found: Mapping[str, float], tolerances: Mapping[str, float]) -> Outcome:
    """Compare differences with their tolerances."""
    listed = ', '.join(f'{name} {value:.0e}' for name, value in found.items())
    problems = [
        f'{name}: {value:.1e} is more than {tolerances[name]:.0e}'
        for name, value in found.items()
        if not value <= tolerances[name]  # Also if it is not a number.
    ]
    return Outcome(f'largest differences: {listed}', problems, found)


def train(dtype: str, ranks: Ranks) -> Outcome:
    """Train the digits detector in mixed precision."""
    updates, scale = training.UPDATES, training.LOSS_SCALE
    with tempfile.TemporaryDirectory() as folder:
        data = f'{folder}/digits/'
        images = updates * training.total_images(ranks.count)
        write_digits(data, num_train=images, num_val=1, progress=False)
        records, *_ = ranks.run(training.train_digits, data, folder, dtype)
    last = records[-1]
    found = (
        f'{len(records)} updates, loss {records[0]["loss"]:.2f} to {last["loss"]:.2f}, '
        f'loss scale {scale["init_scale"]:.0f} to {last["scale"]:.0f}, '
        f'{last["skipped"]} measurement(s) skipped'
    )
    problems = training.judge_training(records, updates, scale['init_scale'])
    return Outcome(found, problems, records)


def count_waits(ranks: Ranks) -> Outcome:
    """Count the host synchronizations that AGVM adds."""
    by_rank = ranks.run(counts.measure_waits)
    rows = [
        dict(variant=variant, measured=measured, count=count)
        for (variant, measured), count in by_rank[0].items()
    ]
    return Outcome(counts.describe_waits(by_rank[0]), counts.judge_waits(by_rank), rows)


def measure_cost(ranks: Ranks) -> Outcome:
    """Measure what AGVM's updates cost."""
    by_rank = ranks.run(cost.measure_cost, cost.SETTINGS)
    return Outcome('in the table below', [], cost.cost_rows(by_rank))


def plan(gpus: int) -> list[tuple[str, Ranks, Callable[[Ranks], Outcome]]]:
    """Return the name, the ranks and the function of each part; of 0 GPUs, on CPUs."""
    each, pair = Ranks(gpus or 2, gpus), Ranks(max(gpus, 2), gpus)
    trainings = [
        (f'{dtype} training', each, partial(train, dtype)) for dtype in training.DTYPES
    ]
    # A GPU alone has no NCCL to test. Over gloo torch counts what it can.
    waiting = [
        ('host waits', ranks, count_waits) for ranks in dict.fromkeys([each, pair])
    ]
    return [
        ('golden case', Ranks(golden.RANKS, gpus), compare_golden),
        ('float64 parity', pair, compare_parity),
        ('ZeRO-1 and FSDP2', pair, compare_engines),
        *trainings,
        *waiting,
        ('cost', each, measure_cost),
    ]


def run_part(name: str, ranks: Ranks, function: Callable[[Ranks], Outcome]) -> dict:
    """Run a part; an exception is a problem that the others survive."""
    print(f'{name} ({ranks}) ...', file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        outcome = function(ranks)
    except Exception as error:
        # That of a rank ends with the line that says what happened.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        outcome = Outcome('stopped', [lines[-1]], traceback.format_exc())
        print(outcome.data, file=sys.stderr, flush=True)
    seconds = round(time.perf_counter() - start, 1)
    return dict(part=name, ranks=str(ranks), **outcome._asdict(), seconds=seconds)


def run_check(out: Path | None = None) -> int:
    """Run all parts, print the report, write all figures and return the exit status."""
    parts = [run_part(*part) for part in plan(torch.cuda.device_count())]
    result = dict(
        check='gpu', environment=environment(), cost=cost.SETTINGS, parts=parts
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + '\n')
    print(describe(result))
    return int(any(part['problems'] for part in parts))


def describe(result: dict) -> str:
    """Return the result as Markdown."""
    parts, facts = result['parts'], dict(result['environment'])
    gpus, date = facts.pop('gpus'), facts.pop('date')
    names = ', '.join(f'{gpus.count(name)} x {name}' for name in dict.fromkeys(gpus))
    versions = ', '.join(f'{name} {value}' for name, value in facts.items())
    blocks = [
        '# GPU check',
        f'{names or "no GPU"}; {versions}; {date}.',
        tables.table(COLUMNS, parts),
    ]
    problems = [
        f'- {part["part"]} ({part["ranks"]}): {problem}'
        for part in parts
        for problem in part['problems']
    ]
    if problems:
        blocks.append('\n'.join(['Problems:', '', *problems]))
    for part in parts:
        if part['part'] == 'cost' and not part['problems']:
            blocks.append(cost.describe(part['ranks'], part['data'], result['cost']))
    return '\n\n'.join(blocks)
