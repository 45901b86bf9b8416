"""Cost of AGVM's updates relative to plain ones: time, memory, kernels."""

from collections.abc import Sequence

import torch.distributed as dist

from gpu_check import tables
from gpu_check.counts import count_calls, count_synchronizations, device_peak
from gpu_check.detectors import build_detector, detector_settings, make_batch
from gpu_check.timing import (
    AGVM_CELLS,
    measure_cells,
    merge_ranks,
    variants_of,
)
from gpu_check.trainers import Trainer

PLAIN = (('plain', False), ('plain again', False))
CELLS = (*PLAIN, *AGVM_CELLS)
SETTINGS = dict(
    model='faster-rcnn_r50', shape=(800, 1333), images=2, rounds=12, warmup=3
)
"""Detector, size and number of the images of a rank, rounds of measurement."""


def measure_cost(settings: dict) -> dict:
    """Measure all cells on this rank, as ``SETTINGS`` say.

    One rank alone compares two micro-batches.

    Returns:
        Result of :func:`measure_cells`, and under 'counts' for each cell its 'peak'
        memory, 'synchronizations', 'operators' and 'kernels'.
    """
    from mmdet.utils import register_all_modules

    register_all_modules()
    rank, micro_batches = dist.get_rank(), 2 if dist.get_world_size() == 1 else 1
    model = detector_settings(settings['model'])
    classes = model['roi_head']['bbox_head']['num_classes']
    trainers = {
        variant: Trainer(build_detector(model), variant, micro_batches=micro_batches)
        for variant in variants_of(CELLS)
    }

    def batch_of(turn: int) -> dict:
        seed = 1000 * turn + rank
        return make_batch(seed, settings['images'], settings['shape'], classes)

    rounds = {key: settings[key] for key in ('rounds', 'warmup')}
    result = measure_cells(trainers, CELLS, batch_of, **rounds)
    batch = batch_of(0)
    # The first profile also loads what it needs.
    count_calls(lambda: trainers['plain'].update(batch))
    result['counts'] = {
        (variant, measured): count(trainers[variant], batch, measured)
        for variant, measured in CELLS
    }
    return result


def count(trainer: Trainer, batch: dict, measured: bool) -> dict[str, int | None]:
    """Return the counts of an update of one cell."""

    def update() -> None:
        trainer.update(batch, measured=measured)

    return dict(
        peak=device_peak(trainer, batch, measured=measured),
        synchronizations=count_synchronizations(update),
        **count_calls(update),
    )


def cost_rows(by_rank: Sequence[dict]) -> list[dict]:
    """Return a row for each cell from the results of :func:`measure_cost`.

    Times are those of the slowest rank, counts those of the first.
    """
    rows = merge_ranks(by_rank, PLAIN)
    for row in rows:
        row.update(by_rank[0]['counts'][row['variant'], row['measured']])
    return rows


def or_dash(value: object) -> str:
    """Format what may not have been counted."""
    return '-' if value is None else f'{value:,}'


def ratio(row: dict) -> str:
    """Format the ratio to plain and its quartiles."""
    found = row['ratio']
    return (
        f'{found["median"]:.3f} ({found["quartile_1"]:.3f} to '
        f'{found["quartile_3"]:.3f})'
    )


COLUMNS = (
    *tables.CELL_COLUMNS,
    ('ms', tables.median('seconds', 1, factor=1e3)),
    ('ratio to plain (quartiles)', ratio),
    (
        'peak memory, MB',
        lambda row: '-' if row['peak'] is None else tables.megabytes(row['peak']),
    ),
    ('kernels', lambda row: or_dash(row['kernels'])),
    ('operators', lambda row: or_dash(row['operators'])),
    ('host waits', lambda row: or_dash(row['synchronizations'])),
)
