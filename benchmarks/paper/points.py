"""Accuracy and training time of runs, collected for the figures."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from agvm_mm.report.logs import read_run
from benchmarks.paper.tables import (
    METHODS,
    METRICS,
    method_of,
    parse_config_name,
    read_cells,
    read_result,
    read_tables,
    work_dir,
)


def training_hours(path: str | Path) -> float | None:
    """Return the hours that a run has spent on training, without validation.

    Updates that a resumed run has repeated count once. There is None without a log.
    """
    try:
        records = [record for record in read_run(path) if 'lr' in record]
    except FileNotFoundError:
        return None
    steps = [0, *(record['step'] for record in records)]
    # 'time' is the mean over the iterations since the last record.
    seconds = sum(
        record.get('time', 0.0) * (step - before)
        for record, (before, step) in zip(records, pairwise(steps), strict=True)
    )
    return seconds / 3600 or None


@dataclass
class Point:
    """Accuracy and training time of one run.

    Args:
        panel: Title of the panel that the run belongs to.
        method: A key of ``METHODS``, or 'sam'.
        batch_size: Images of an update.
        metric: A key of ``METRICS``.
        value: Accuracy in percent; 'NaN' if the run diverged.
        hours: Time of the training, None if it is not known.
        from_paper: Whether the numbers are the paper's, not measured here.
    """

    panel: str
    method: str
    batch_size: int
    metric: str
    value: float | str | None
    hours: float | None = None
    from_paper: bool = False

    @property
    def diverged(self) -> bool:
        """Whether the run diverged."""
        return self.value == 'NaN'


def table_points(work_dirs: Path) -> list[Point]:
    """Return the paper's points, and those measured with the configs of its tables."""
    tables = read_tables()
    points = []
    timed = {}  # the time of a row is that of its last method: AGVM where it ran
    for cell in read_cells('paper', 8):
        common = dict(
            panel=f'{model_title(cell.model)}\n{tables[cell.table]["title"]}',
            method=method_of(cell.table, cell.column) or cell.column.lower(),
            batch_size=cell.batch_size,
            metric=cell.metric,
        )
        if cell.paper is not None:
            point = Point(value=cell.paper, from_paper=True, **common)
            points.append(point)
            if cell.paper != 'NaN':
                timed[cell.table, cell.model, cell.batch_size] = point
        if cell.config is None:
            continue
        folder = work_dir(cell, work_dirs)
        found = read_result(folder, cell.metric)
        if found is not None:
            points.append(Point(value=found, hours=training_hours(folder), **common))
    for key, table in tables.items():
        for row in table['rows']:
            if point := timed.get((key, row['model'], row['batch_size'])):
                point.hours = paper_hours(row.get('note'))
    return points


def paper_hours(note: str | None) -> float | None:
    """Return the hours in a note of the paper's tables, for example '4.2 minutes'."""
    found = re.search(r'([\d.]+) (minutes|h)\b', note or '')
    if found is None:
        return None
    number, unit = found.groups()
    return float(number) / (60 if unit == 'minutes' else 1)


def folder_points(folders: Iterable[str | Path]) -> list[Point]:
    """Return the points of work folders that are named as their configs.

    Raises:
        ValueError: If a folder is not named as a config, or has no result.
    """
    points = [_folder_point(Path(folder)) for folder in folders]
    # A diverged run belongs to the panel of the others, whatever its metric.
    for point in points:
        others = (p for p in points if p.panel == point.panel and not p.diverged)
        if point.diverged:
            point.metric = next(others, point).metric
    return points


def _folder_point(folder: Path) -> Point:
    name = parse_config_name(folder.absolute().name)
    if name is None:
        raise ValueError(
            f'{folder} is not named as a config '
            '({model}_{backbone}_{neck}_{method}_b{batch}_{length}_{data}) of '
            f'one of the methods {", ".join(METHODS)}'
        )
    # Of several metrics that were measured, masks come before boxes.
    for metric in reversed(METRICS):
        value = read_result(folder, metric)
        if value is not None:
            return Point(
                panel=f'{model_title(name.model.split("_")[0])}, {name.dataset}',
                method=name.method,
                batch_size=name.batch,
                metric=metric,
                value=value,
                hours=training_hours(folder),
            )
    raise ValueError(f'{folder} has no validation result')


def model_title(name: str) -> str:
    """Return a model's name in the usual spelling, for example 'Mask R-CNN'."""
    words = re.split('[-_]', name)
    upper = {'rcnn': 'R-CNN', 'fpn': 'FPN', 'sem': 'Semantic', 'uninet': 'UniNet'}
    upper |= {'retinanet': 'RetinaNet', 'upernet': 'UPerNet'}
    return ' '.join(upper.get(word, word.capitalize()) for word in words)
