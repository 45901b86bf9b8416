"""Cost of AGVM's updates relative to plain ones: time, memory, kernels."""

from collections.abc import Callable, Sequence

from gpu_check import tables
from gpu_check.counts import count_calls, count_synchronizations, device_peak
from gpu_check.detectors import build_detectors
from gpu_check.trainers import PLAIN, measure_cells, merge_ranks, updates_of

SETTINGS = dict(
    model='faster-rcnn_r50', shape=(800, 1333), images=2, rounds=12, warmup=3
)
"""Detector, size and number of the images of a rank, rounds of measurement."""


def measure_cost(settings: dict) -> dict:
    """Measure times and counts of all cells on this rank, as ``SETTINGS`` say."""
    trainers, batch_of = build_detectors(settings)
    rounds = {key: settings[key] for key in ('rounds', 'warmup')}
    result = measure_cells(trainers, batch_of, **rounds)
    updates = updates_of(trainers, batch_of(0))
    # The first profile also loads what it needs.
    count_calls(updates[PLAIN])
    result['counts'] = {
        cell: dict(
            peak=device_peak(update),
            synchronizations=count_synchronizations(update),
            **count_calls(update),
        )
        for cell, update in updates.items()
    }
    return result


def cost_rows(by_rank: Sequence[dict]) -> list[dict]:
    """Return a row for each cell from the results of :func:`measure_cost`.

    Times are those of the slowest rank, counts those of the first.
    """
    counts = by_rank[0]['counts'].values()
    return [row | own for row, own in zip(merge_ranks(by_rank), counts, strict=True)]


def describe(ranks: str, rows: Sequence[dict], settings: dict) -> str:
    """Return the rows as Markdown."""
    height, width = settings['shape']
    title = (
        '## Cost of an update\n\n'
        f'{settings["model"]}, {ranks}, {settings["images"]} image(s) of '
        f'{height} x {width} in each micro-batch; one rank alone has two micro-batches '
        f'and compares them. {settings["rounds"]} rounds in which the variants '
        'alternate; medians, ratios to the mean of the two plain variants in the same '
        'round. Peak memory is beyond what was allocated before the update. Host waits '
        'are those that torch knows of; the detector itself has most of them.\n\n'
    )
    return title + tables.table(COLUMNS, rows)


def ratio(row: dict) -> str:
    """Format the ratio to plain and its quartiles."""
    median, low, high = row['ratio'].values()
    return f'{median:.3f} ({low:.3f} to {high:.3f})'


def count(key: str, show: Callable[[int], str] = '{:,}'.format) -> Callable:
    """Return a function from a row to what may not have been counted."""
    return lambda row: '-' if row[key] is None else show(row[key])


COLUMNS = (
    *tables.CELL_COLUMNS,
    ('ms', tables.median('seconds', 1, factor=1e3)),
    ('ratio to plain (quartiles)', ratio),
    ('peak memory, MB', count('peak', tables.megabytes)),
    ('kernels', count('kernels')),
    ('operators', count('operators')),
    ('host waits', count('synchronizations')),
)
