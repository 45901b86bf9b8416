"""Reader of MMEngine's JSON logs, the files ``vis_data/scalars.json`` of a run."""

import json
import math
import warnings
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from agvm_mm.method.noise_scale import ALL

PHI_KEY = 'agvm/phi_'
MU_KEY = 'agvm/mu_'
NOISE_KEY = 'agvm/noise_scale_'

Record = dict[str, Any]
"""One line of a log: values by name, and the update or epoch as ``step``."""
Curves = dict[str, tuple[list[int], list[float]]]
"""Updates and values by module."""


def find_logs(path: str | Path) -> list[Path]:
    """Return the JSON logs of a run, the oldest first. A resumed run has several.

    Args:
        path: A log, which is returned alone, or a work folder. One of several runs is
            none: their logs would be joined.

    Raises:
        FileNotFoundError: If the folder has none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    # By their dated folders: a copy of the work folder has other times of its files.
    found = sorted(path.glob('*/vis_data/scalars.json'))
    if not found:
        raise FileNotFoundError(
            f'{path} has no */vis_data/scalars.json: not the work folder of a run?'
        )
    return found


def read_scalars(log: str | Path) -> list[Record]:
    """Read the records of one JSON log, in order.

    A last line that its run did not finish, since it was killed, is left out with a
    warning.

    Raises:
        ValueError: If another line is not JSON, or no record of MMEngine.
    """
    records = []
    lines = Path(log).read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            records += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            message = f'{log}, line {number} is not JSON: {error}'
            if number < len(lines) or line.endswith('\n'):
                raise ValueError(message) from None
            warnings.warn(f'{message}; left out, as the last one', stacklevel=2)
    if not all(isinstance(r, dict) and ('step' in r or 'lr' not in r) for r in records):
        raise ValueError(f"{log} has records without 'step', unlike a log of MMEngine")
    return records


def run_logs(path: str | Path) -> list[Path]:
    """Return the logs of :func:`find_logs` that the latest one continues, and itself.

    An earlier run that was started again is left out.
    """
    logs: list[Path] = []
    begin = math.inf
    for log in reversed(find_logs(path)):
        steps = [record['step'] for record in read_scalars(log) if 'lr' in record]
        first = min(steps[:1], default=math.inf)
        if logs and first >= begin:  # Later ones replace all of it.
            continue
        logs.insert(0, log)
        begin = first
        if steps and steps[0] <= (steps[1] - steps[0] if len(steps) > 1 else 1):
            break
    return logs


def read_run(path: str | Path) -> list[Record]:
    """Read the records of a run's training and of AGVM, without those of validation.

    Args:
        path: A JSON log or a work folder. A log that continues an earlier one of the
            same folder replaces it from its first update on.

    Raises:
        FileNotFoundError: If there is no log.
    """
    joined: list[Record] = []
    for log in run_logs(path):
        records = [
            record
            for record in read_scalars(log)
            if 'lr' in record or any(key.startswith('agvm/') for key in record)
        ]
        if any('lr' in record for record in records):
            first = records[0]['step']
            joined = [record for record in joined if record['step'] < first] + records
    return joined


def module_curves(records: Iterable[Record], prefix: str) -> Curves:
    """Collect the curve of each module, in the order in which modules were logged.

    The noise scales include that of the whole network, and NaN where not resolved.

    Args:
        records: Records of a run.
        prefix: :data:`PHI_KEY`, :data:`MU_KEY` or :data:`NOISE_KEY`.
    """
    curves: Curves = {}
    for record in records:
        names = [key.removeprefix(PHI_KEY) for key in record if key.startswith(PHI_KEY)]
        if prefix == NOISE_KEY and names:
            names.append(ALL)
        for name in names:
            if prefix == NOISE_KEY or prefix + name in record:
                updates, values = curves.setdefault(name, ([], []))
                updates.append(record['step'])
                values.append(record.get(prefix + name, math.nan))
    return curves


def total_batch(records: Iterable[Record]) -> int | None:
    """Return the images of a full update, which a large-batch loop logs.

    There is None if the log is that of another loop, or has only the last update of
    each epoch, which may be smaller.
    """
    logged = [record for record in records if 'batch_size' in record]
    epochs = [record['epoch'] for record in logged if 'epoch' in record]
    if not logged or (epochs and len(set(epochs)) == len(epochs)):
        return None
    return int(max(record['batch_size'] for record in logged))


def lr_drops(records: Iterable[Record]) -> list[int]:
    """Return the last updates before the learning rate fell to half or less."""
    rates = [(record['step'], record['lr']) for record in records if 'lr' in record]
    return [step for (step, before), (_, rate) in pairwise(rates) if rate <= before / 2]
