"""The check as a whole: its report and its exit status."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path

import torch

from gpu_check import cost, tables
from gpu_check.environment import environment
from gpu_check.parts import plan, run_part

COLUMNS = (
    ('part', itemgetter('part')),
    ('ranks', itemgetter('ranks')),
    ('state', lambda row: 'PROBLEM' if row['problems'] else 'ok'),
    ('found', itemgetter('found')),
    ('s', itemgetter('seconds')),
)


def run_check(out: Path | None = None) -> int:
    """Run all parts, print the report and return the exit status.

    Args:
        out: JSON file for all figures. Defaults to None, none is written.
    """
    results = []
    with output_to_stderr():
        for name, ranks, function in plan(torch.cuda.device_count()):
            print(f'{name} ({ranks}) ...', file=sys.stderr, flush=True)
            results.append(dict(part=name, **run_part(function, ranks)))
    result = dict(
        check='gpu', environment=environment(), cost=cost.SETTINGS, parts=results
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + '\n')
    print(describe(result))
    return int(any(part['problems'] for part in results))


@contextmanager
def output_to_stderr() -> Iterator[None]:
    """Write to stderr what goes to stdout, also from processes that are started now.

    The report alone goes to stdout; loggers and libraries write there, too.
    """
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def describe(result: dict) -> str:
    """Return the result as Markdown."""
    parts = result['parts']
    blocks = [
        '# GPU check',
        describe_environment(result['environment']),
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
            blocks += describe_cost(part, result['cost'])
    return '\n\n'.join(blocks)


def describe_environment(facts: dict) -> str:
    """Return the facts about the machine and the software as a paragraph."""
    gpus = facts['gpus']
    names = ', '.join(f'{gpus.count(name)} x {name}' for name in dict.fromkeys(gpus))
    versions = ', '.join(
        f'{name} {value}'
        for name, value in facts.items()
        if name not in ('gpus', 'date')
    )
    return f'{names or "no GPU"}; {versions}; {facts["date"]}.'


def describe_cost(part: dict, settings: dict) -> list[str]:
    """Return the title, the table and the notes of the cost of an update."""
    height, width = settings['shape']
    return [
        '## Cost of an update',
        f'{settings["model"]}, {part["ranks"]}, {settings["images"]} image(s) of '
        f'{height} x {width} in each micro-batch; one rank alone has two micro-batches '
        f'and compares them. {settings["rounds"]} rounds in which the variants '
        'alternate; medians, ratios to the mean of the two plain variants in the same '
        'round. Peak memory is beyond what was allocated before the update. Host waits '
        'are those that torch knows of; the detector itself has most of them.',
        tables.table(cost.COLUMNS, part['data']),
    ]
