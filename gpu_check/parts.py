"""Parts of the check: each runs on some ranks and says what it found."""

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from demo import write_digits
from gpu_check import cost, golden, parity, synchronizations, training
from gpu_check.ranks import run_on_ranks

PRELOAD = ('mmdet.models', 'demo.detection')


@dataclass(frozen=True)
class Ranks:
    """Ranks that run a part of the check.

    Args:
        count: Number of ranks.
        gpus: GPUs of this machine; 0 for CPU cores. If they are fewer than the ranks,
            the ranks share them and communicate over gloo instead of NCCL.
    """

    count: int
    gpus: int

    def __str__(self) -> str:
        if not self.gpus:
            return f'{self.count} x gloo, CPU'
        if self.count > self.gpus:
            return f'{self.count} x gloo, {self.gpus} GPU(s)'
        return f'{self.count} x NCCL'

    def run(self, function: Callable, *args: object) -> list:
        """Run a function on the ranks; see :func:`run_on_ranks`."""
        return run_on_ranks(
            function, self.count, *args, preload=PRELOAD, share_gpus=self.gpus > 0
        )


@dataclass
class Outcome:
    """Outcome of a part.

    Args:
        found: What was found, in one line.
        problems: Faults that were found. Defaults to none.
        data: All figures. Defaults to None.
    """

    found: str
    problems: list[str] = field(default_factory=list)
    data: Any = None


def compare_golden(ranks: Ranks) -> Outcome:
    """Compare Phi and mu of the hand-computed case."""
    found = golden.golden_differences(ranks.run(golden.measure_golden))
    return compare(found, golden.TOLERANCES)


def compare_parity(ranks: Ranks) -> Outcome:
    """Compare trainings in float64 with the reference, and the ranks."""
    found = parity.parity_differences(ranks.run(parity.train_cases))
    return compare(found, dict.fromkeys(found, parity.TOLERANCE) | dict(ranks=0.0))


def compare(found: Mapping[str, float], tolerances: Mapping[str, float]) -> Outcome:
    """Compare differences with their tolerances."""
    listed = ', '.join(f'{name} {value:.0e}' for name, value in found.items())
    problems = [
        f'{name}: {value:.1e} is more than {tolerances[name]:.0e}'
        for name, value in found.items()
        if not value <= tolerances[name]  # Also if it is not a number.
    ]
    return Outcome(f'largest differences: {listed}', problems, dict(found))


def train(ranks: Ranks, dtype: str) -> Outcome:
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


def count_synchronizations(ranks: Ranks) -> Outcome:
    """Count the host synchronizations that AGVM adds, and forbid them."""
    by_rank = ranks.run(synchronizations.measure_synchronizations)
    found = synchronizations.describe(by_rank[0])
    rows = [
        dict(variant=variant, measured=measured, **cell)
        for (variant, measured), cell in by_rank[0].items()
    ]
    return Outcome(found, synchronizations.judge(by_rank), rows)


def measure_cost(ranks: Ranks, settings: dict) -> Outcome:
    """Measure what AGVM's updates cost."""
    by_rank = ranks.run(cost.measure_cost, settings)
    return Outcome('in the table below', [], cost.cost_rows(by_rank))


def plan(gpus: int) -> list[tuple[str, Ranks, Callable[[Ranks], Outcome]]]:
    """Return the name, the ranks and the function of each part.

    Args:
        gpus: GPUs of this machine; with 0 the ranks are two CPU cores.
    """
    each, pair = Ranks(gpus or 2, gpus), Ranks(max(gpus, 2), gpus)
    parts = [
        ('golden case', Ranks(golden.RANKS, gpus), compare_golden),
        ('float64 parity', pair, compare_parity),
    ]
    parts += [
        (f'{dtype} training', each, lambda ranks, dtype=dtype: train(ranks, dtype))
        for dtype in training.DTYPES
    ]
    # A GPU alone has no NCCL to test. Over gloo torch counts what it can.
    for ranks in dict.fromkeys((each, pair)):
        parts.append(('host waits', ranks, count_synchronizations))
    settings = cost.SETTINGS
    parts.append(('cost', each, lambda ranks: measure_cost(ranks, settings)))
    return parts


def run_part(function: Callable[[Ranks], Outcome], ranks: Ranks) -> dict:
    """Run a part; an exception is a problem that the others survive.

    Returns:
        The fields of its :class:`Outcome`, and the 'ranks' and 'seconds' it took.
    """
    start = time.perf_counter()
    try:
        outcome = function(ranks)
    except Exception as error:
        # That of a rank ends with the line that says what happened.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        outcome = Outcome('stopped', [lines[-1]], traceback.format_exc())
        print(outcome.data, file=sys.stderr, flush=True)
    seconds = round(time.perf_counter() - start, 1)
    return dict(vars(outcome), ranks=str(ranks), seconds=seconds)
