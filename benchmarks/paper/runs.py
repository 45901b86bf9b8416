"""Result of a run, and how the run differs from its config."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from agvm_mm.report.logs import Record, read_scalars, run_logs, total_batch

COMPARED = (
    'model',
    'sync_bn',
    'train_dataloader',
    'val_dataloader',
    'val_evaluator',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
    'auto_scale_lr',
    'load_from',
    'default_hooks',
    'custom_hooks',
)
"""Sections of a config that decide what a run trains and measures."""

NOT_COMPARED = {
    # Hooks that only write.
    'timer',
    'logger',
    'checkpoint',
    'visualization',
    'preemption',
    # Where data and weights are, and how they are loaded.
    'data_root',
    'data_prefix',
    'pretrained',
    'backend_args',
    'num_workers',
    'persistent_workers',
    'pin_memory',
    'prefetch_factor',
    # How the total batch is divided.
    'batch_size',
    'val_interval',
}
"""Keys, at any depth, that do not."""

TIMES = {'data_time', 'time', 'step'}
"""Fields of a validation that are not results."""


def read_records(path: str | Path) -> list[Record]:
    """Read the records of the last run, with those of its validations."""
    return [record for log in run_logs(path) for record in read_scalars(log)]


def last_result(path: str | Path, key: str) -> float | None:
    """Return the last validation result of a run, a JSON log or a work folder.

    It is NaN if the last loss is not finite. MMDetection's ``CocoMetric`` reports
    nothing for a detector that finds no box: that is 0, not the result of an earlier
    validation. Without a log, a validation, or if it had other metrics only, there is
    None.
    """
    try:
        records = read_records(path)
    except FileNotFoundError:
        return None
    losses = [record['loss'] for record in records if 'loss' in record]
    if losses and not math.isfinite(losses[-1]):
        return math.nan
    for record in reversed(records):
        if key in record:
            return record[key]
        # Hooks may write scalars of their own; a validation has its time.
        if 'time' in record and 'lr' not in record:
            return None if record.keys() - TIMES else 0.0
    return None


def differences(
    folder: str | Path, config: str | Path, updates: int | None
) -> list[str]:
    """Return how the last run in a work folder differs from a whole one of a config.

    Args:
        folder: Work folder, with at least one log.
        config: Path of the config.
        updates: Updates of a whole run; None for one that diverged, which may be short.
    """
    wanted = compared_settings(config)
    records = read_records(folder)
    found = []
    batch, whole = total_batch(records), wanted['train_cfg.total_batch_size']
    if batch not in (None, whole):
        found.append(f'{batch} images in an update instead of {whole}')
    interval = 1
    for log in run_logs(folder):
        path = log.parent / 'config.py'
        if not path.exists():
            found.append('a log without a config')
            continue
        settings = compared_settings(path)
        found += [
            f'{key}={settings.get(key)!r} instead of {wanted.get(key)!r}'
            for key in wanted | settings
            if settings.get(key) != wanted.get(key)
        ]
        interval = logging_interval(path)
    if updates is not None:
        found += length_differences(records, wanted, updates, interval)
    return list(dict.fromkeys(found))


def logging_interval(path: Path) -> int:
    """Return the updates between the records of a run from its config."""
    hooks = Config.fromfile(path, import_custom_modules=False).get('default_hooks')
    return ((hooks or {}).get('logger') or {}).get('interval', 10)


def length_differences(
    records: list[Record], wanted: Mapping[str, Any], updates: int, interval: int
) -> list[str]:
    """Return how the length of a run differs from what was wanted.

    Args:
        records: Records of the run.
        wanted: Result of :func:`compared_settings` of the config.
        updates: Updates of a whole run.
        interval: Updates between records. The last of an epoch may have none.
    """
    found = []
    last = max((record['step'] for record in records if 'lr' in record), default=0)
    if not updates - interval < last <= updates:
        found.append(f'{last:,} updates in the log instead of {updates:,}')
    # A validation has the epoch, or the update in a loop that counts updates.
    unit = 'epochs' if 'train_cfg.max_epochs' in wanted else 'iters'
    end = wanted[f'train_cfg.max_{unit}']
    steps = [r['step'] for r in records if 'lr' not in r and 'time' in r]
    if steps[-1:] != [end]:
        after = steps[-1] if steps else 0
        found.append(f'validated last after {after:,} of {end:,} {unit}')
    return found


def compared_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings of a config that decide its result, by dotted key."""
    cfg = Config.fromfile(path, import_custom_modules=False)
    if cfg.get('resume'):
        cfg.load_from = None
    found: dict[str, Any] = {}

    def add(key: str, value: Any) -> None:
        name = key.rpartition('.')[2]
        if name in NOT_COMPARED:
            return
        if isinstance(value, dict | list | tuple):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            for part, inner in parts:
                add(f'{key}.{part}', inner)
        elif value is not None:
            # The folder of annotations may differ, their file may not.
            found[key] = Path(value).name if name == 'ann_file' else value

    for section in COMPARED:
        add(section, cfg.to_dict().get(section))
    return found
