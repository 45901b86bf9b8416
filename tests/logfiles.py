"""JSON logs of runs that never happened."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.config import Config


def write_log(
    folder: Path, *records: dict[str, Any], name: str = '20260101_000000'
) -> Path:
    """Write records as the log of a run into its work folder.

    Args:
        folder: Work folder.
        records: Records of the log.
        name: Dated folder of the run.
    """
    log = folder / name / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(map(json.dumps, records)))
    return log


def write_aged_log(folder: Path, age: int, steps: Iterable[int]) -> Path:
    """Write a training log with the modification time ``age``.

    Each record has the age as well. A validation follows the training.
    """
    records = [{'step': step, 'lr': 0.1, 'age': age} for step in steps]
    # Validations count epochs, not updates.
    log = write_log(folder, *records, {'step': 1, 'mAP': 0.5}, name=str(age))
    os.utime(log, (age, age))
    return log


def write_timed_run(
    folder: Path,
    metric: str,
    value: float,
    *,
    loss: float = 1.0,
    seconds: float = 36.0,
) -> Path:
    """Write the log of 10 updates of so many seconds each, with one validation.

    Returns:
        The work folder.
    """
    records = [
        {'step': step, 'lr': 0.1, 'loss': loss, 'time': seconds} for step in (5, 10)
    ]
    write_log(folder, *records, {metric: value, 'step': 1})
    return folder


def write_whole_run(
    folder: Path,
    config: Path,
    metric: dict[str, float],
    *,
    updates: int,
    changes: dict[str, Any] | None = None,
    first: int = 1,
    name: str = '20260101_000000',
    **more: Any,
) -> Path:
    """Write log and config of a run, as MMEngine does; return the log.

    Args:
        folder: Work folder.
        config: Config of the run.
        metric: Result of the validation at the end.
        updates: Last update.
        changes: Changes of the config, by dotted key.
        first: First update of the log.
        name: Dated folder of the run.
        more: Values of each training record.
    """
    cfg = Config.fromfile(config, import_custom_modules=False)
    cfg.merge_from_dict(changes or {})
    cfg.work_dir, cfg.launcher = str(folder), 'pytorch'
    epochs, batch = cfg.train_cfg.get('max_epochs'), cfg.train_cfg.total_batch_size
    train = {'lr': 0.1, 'loss': 1.0, 'batch_size': batch, **more}
    records = [{**train, 'step': step} for step in (first, first + 1, updates)]
    end = {**metric, 'time': 0.1, 'step': epochs or updates}
    log = write_log(folder, *records, end, name=name)
    cfg.dump(log.parent / 'config.py')
    return log
