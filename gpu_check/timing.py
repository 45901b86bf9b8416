"""Times and reduced bytes of several variants, measured side by side."""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

import torch.distributed as dist

from agvm_mm.estimators import ESTIMATORS
from gpu_check.trainers import Trainer

Cell = tuple[str, bool]
"""A variant, and whether its updates are measured."""

AGVM_CELLS: tuple[Cell, ...] = tuple(
    (estimator, measured) for estimator in ESTIMATORS for measured in (False, True)
)


def variants_of(cells: Sequence[Cell]) -> list[str]:
    """Return the variants of some cells, each once."""
    return list(dict.fromkeys(variant for variant, _ in cells))


def measure_cells(
    trainers: Mapping[str, Trainer],
    cells: Sequence[Cell],
    batch_of: Callable[[int], dict],
    *,
    rounds: int,
    warmup: int,
) -> dict[str, dict]:
    """Measure all cells on this rank, on the same images, in a rotating order.

    Args:
        trainers: Trainers by variant.
        cells: Cells to measure.
        batch_of: Function that returns this rank's images of a round.
        rounds: Timed rounds.
        warmup: Rounds before those.

    Returns:
        By cell, 'seconds' of each round as :meth:`Trainer.time_update` returns them,
        and the bytes 'reduced' in an update.
    """
    seconds: dict[Cell, list] = {cell: [] for cell in cells}
    for turn in range(warmup + rounds):
        batch = batch_of(turn)
        for variant, measured in rotate(cells, turn):
            taken = trainers[variant].time_update(batch, measured=measured, seed=turn)
            if turn >= warmup:
                seconds[variant, measured].append(taken)
        if dist.get_rank() == 0:
            print(f'\rround {turn + 1} of {warmup + rounds}', end=' ', file=sys.stderr)
    # Counting takes time, so it comes after the timed rounds.
    batch = batch_of(0)
    reduced = {
        (variant, measured): trainers[variant].reduced_bytes(batch, measured=measured)
        for variant, measured in cells
    }
    return dict(seconds=seconds, reduced=reduced)


def rotate(cells: Sequence[Cell], turn: int) -> list[Cell]:
    """Return the cells with another first one each turn, reversed every other turn.

    Each cell comes equally often early and late, and not always after the same one.
    """
    start = turn % len(cells)
    order = [*cells[start:], *cells[:start]]
    return order[::-1] if turn % 2 else order


def merge_ranks(by_rank: Sequence[dict], plain: Sequence[Cell]) -> list[dict]:
    """Merge the results of :func:`measure_cells` from all ranks.

    Args:
        by_rank: Result of each rank.
        plain: Cells whose mean time is the denominator of the ratios.

    Returns:
        For each cell: 'variant', 'measured', 'seconds' of the slowest rank, their
        'ratio' to plain in the same round, 'cpu_ratio' of CPU time summed over the
        ranks, 'seconds_by_round', and 'bytes_reduced' by the first rank.
    """
    clock: dict[Cell, list[float]] = {}
    cpu: dict[Cell, list[float]] = {}
    for cell in by_rank[0]['seconds']:
        rounds = list(zip(*(r['seconds'][cell] for r in by_rank), strict=True))
        clock[cell] = [max(seconds for seconds, _ in ranks) for ranks in rounds]
        cpu[cell] = [sum(seconds for _, seconds in ranks) for ranks in rounds]
    ratios, cpu_ratios = ratios_to_plain(clock, plain), ratios_to_plain(cpu, plain)
    return [
        dict(
            variant=variant,
            measured=measured,
            seconds=quartiles(clock[variant, measured]),
            ratio=quartiles(ratios[variant, measured]),
            cpu_ratio=quartiles(cpu_ratios[variant, measured]),
            seconds_by_round=[round(value, 5) for value in clock[variant, measured]],
            bytes_reduced=by_rank[0]['reduced'][variant, measured],
        )
        for variant, measured in clock
    ]


def ratios_to_plain(
    seconds: Mapping[Cell, Sequence[float]], plain: Sequence[Cell]
) -> dict[Cell, list[float]]:
    """Divide each cell's times by the mean of the plain ones in the same round."""
    plain_rounds = zip(*(seconds[cell] for cell in plain), strict=True)
    means = [statistics.mean(values) for values in plain_rounds]
    return {
        cell: [value / mean for value, mean in zip(values, means, strict=True)]
        for cell, values in seconds.items()
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return 'median', 'quartile_1' and 'quartile_3'."""
    values = list(values)
    if len(values) == 1:
        values = values * 2
    low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
    return dict(median=middle, quartile_1=low, quartile_3=high)
