"""Draw accuracy and training time against the batch size, method by method.

    python tools/analysis/plot_accuracy.py --out accuracy.png
    python tools/analysis/plot_accuracy.py work_dirs/*_digits --out digits.png

Without folders: every table of the paper, with what has been trained under
``work_dirs/<config name>`` in front of the paper's points. With folders: these runs,
a panel for each model; their names must be those of their configs, which tell model,
method and batch size. Of several runs of one name, such as those of several seeds,
the mean is drawn, with a bar from the lowest to the highest. A cross at the lower edge
is a run that diverged.
"""

import argparse
import json
import math
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Beside this file, and one folder up.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import paper_tables  # noqa: E402
import plot_variance  # noqa: E402

# Each method looks the same in every figure. AGVM is drawn in the strongest colours.
STYLES = {
    'agvm-sgd': ('AGVM + SGD', '#0072B2', 'o', '-'),
    'agvm-adamw': ('AGVM + AdamW', '#D55E00', 's', '-'),
    'sgd': ('SGD', '#000000', '^', '--'),
    'adamw': ('AdamW', '#CC79A7', 'v', '--'),
    'lars': ('LARS', '#009E73', 'D', '-.'),
    'lamb': ('LAMB', '#E69F00', 'P', '-.'),
    'pmd-lamb': ('PMD-LAMB', '#009E73', 'X', ':'),
    'sam': ('SAM', '#56B4E9', 'D', ':'),
}
METRIC_NAMES = {
    'bbox_mAP': 'box mAP (%)',
    'segm_mAP': 'mask mAP (%)',
    'PQ': 'PQ (%)',
    'mIoU': 'mIoU (%)',
}
# {model}_{backbone}_{neck}_{method}_b{batch}_{length}_{data}, see configs/README.md.
NAME = re.compile(
    r'(?P<model>[^_]+)_.+_(?P<method>[^_]+)_b(?P<batch>\d+)_[^_]+_(?P<data>[^_]+)'
)
PAPER_ALPHA = 0.5


@dataclass
class Point:
    """One run: what it reached, and in what time.

    Args:
        panel (str): Title of the panel it belongs to.
        method (str): A key of ``STYLES``.
        batch_size (int): Images of an update.
        metric (str): A key of ``METRIC_NAMES``.
        value (float | str, optional): Accuracy in percent; 'NaN' if it diverged.
        hours (float, optional): Time of the training. Defaults to None, not known.
        from_paper (bool): Whether the paper's, not measured here. Defaults to False.
    """

    panel: str
    method: str
    batch_size: int
    metric: str
    value: float | str | None
    hours: float | None = None
    from_paper: bool = False


def training_hours(folder):
    """Time that a run spent on training, from its log.

    Args:
        folder (Path): Work folder.

    Returns:
        float or None: Hours; without validation, and whatever a resumed run has
        done twice counts once. None if there is no log.
    """
    try:
        records = plot_variance.read_run(folder)
    except FileNotFoundError:
        return None
    seconds, before = 0.0, 0
    for record in records:
        # 'time' is the mean of the last iterations, of which 'step' is the number.
        seconds += record.get('time', 0.0) * (record['step'] - before)
        before = record['step']
    return seconds / 3600 or None


def paper_hours(note):
    """The hours that a note of the paper's tables tells, such as '4.2 minutes'."""
    found = re.search(r'([\d.]+) (minutes|h)\b', note or '')
    if found is None:
        return None
    number, unit = found.groups()
    return float(number) / (60 if unit == 'minutes' else 1)


def table_points(work_dirs):
    """The paper's points and those measured with the configs of its tables.

    Args:
        work_dirs (Path): Folder of work folders.

    Returns:
        list[Point]: Those that have a value.
    """
    tables = json.loads(paper_tables.PAPER.read_text())['tables']
    notes = {
        (key, row['model'], row['batch_size']): row.get('note')
        for key, table in tables.items()
        for row in table['rows']
    }
    points = []
    timed = {}  # the time of a row is that of its last method: AGVM where it ran
    for cell in paper_tables.read_cells('paper', 8):
        panel = f'{show_model(cell.model)}\n{tables[cell.table]["title"]}'
        method = paper_tables.method_of(cell.table, cell.column)
        common = dict(
            panel=panel,
            method=method or cell.column.lower(),
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
        folder = paper_tables.work_dir(cell, work_dirs)
        found = paper_tables.read_result(folder, cell.metric)
        if found is not None:
            points.append(Point(value=found, hours=training_hours(folder), **common))
    for key, point in timed.items():
        point.hours = paper_hours(notes[key])
    return points


def folder_points(folders):
    """The points of work folders that are named as their configs.

    Args:
        folders (Sequence[str or Path]): Work folders.

    Returns:
        list[Point]: One for each.

    Raises:
        ValueError: If a folder's name does not tell what was trained, or there is
            no result in it.
    """
    points = []
    for folder in map(Path, folders):
        parts = NAME.fullmatch(folder.absolute().name)
        if parts is None or parts['method'] not in STYLES:
            raise ValueError(
                f'{folder} is not named as a config '
                '({model}_{backbone}_{neck}_{method}_b{batch}_{length}_{data}) of '
                f'one of the methods {", ".join(STYLES)}'
            )
        # The most telling metric that was measured: masks before boxes.
        results = (
            (metric, paper_tables.read_result(folder, metric))
            for metric in reversed(paper_tables.METRICS)
        )
        metric, value = next(
            (pair for pair in results if pair[1] is not None), (None, None)
        )
        if metric is None:
            raise ValueError(f'{folder} holds no validation result')
        points.append(
            Point(
                panel=f'{show_model(parts["model"])}, {parts["data"]}',
                method=parts['method'],
                batch_size=int(parts['batch']),
                metric=metric,
                value=value,
                hours=training_hours(folder),
            )
        )
    # A diverged run has no metric of its own.
    for point in points:
        metrics = [
            other.metric
            for other in points
            if other.panel == point.panel and other.value != 'NaN'
        ]
        if point.value == 'NaN' and metrics:
            point.metric = metrics[0]
    return points


def show_model(name):
    """A model's name as people write it."""
    words = re.split('[-_]', name)
    upper = {'rcnn': 'R-CNN', 'fpn': 'FPN', 'sem': 'Semantic', 'uninet': 'UniNet'}
    upper |= {'retinanet': 'RetinaNet', 'upernet': 'UPerNet'}
    return ' '.join(upper.get(word, word.capitalize()) for word in words)


def plot_accuracy(points, *, title=None, columns=3):
    """Draw accuracy, and below it training time, for each panel.

    Args:
        points (list[Point]): What is to be drawn.
        title (str, optional): Title of the figure.
        columns (int): Panels side by side. Defaults to 3.

    Returns:
        Figure: The figure; the caller saves and closes it.

    Raises:
        ValueError: If there is no point.
    """
    if not points:
        raise ValueError('there is nothing to draw: no run has a result')
    panels = {}
    for point in points:
        panels.setdefault((point.panel, point.metric), []).append(point)
    columns = min(columns, len(panels))
    titles = list(panels)
    bands = [titles[i : i + columns] for i in range(0, len(titles), columns)]
    # Rows of axes: accuracy, and the time where a run of the band has one.
    rows = []
    for band in bands:
        rows.append(('accuracy', band))
        if any(point.hours for key in band for point in panels[key]):
            rows.append(('time', band))
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(max(6, 4.2 * columns), 3 * len(rows) + 0.6),
        squeeze=False,
        layout='constrained',
    )
    for panel in axes.flat:
        panel.set_axis_off()
    for row, (kind, band) in zip(axes, rows, strict=True):
        for panel, key in zip(row, band, strict=False):
            drawn = panels[key]
            if kind == 'accuracy':
                _set_up(panel, drawn)
                panel.set_title(key[0], fontsize=10)
                panel.set_ylabel(METRIC_NAMES[key[1]])
                _draw_accuracy(panel, drawn)
            elif any(point.hours for point in drawn):
                _set_up(panel, drawn)
                _draw_time(panel, drawn)
    _add_legend(figure, points)
    if title:
        figure.suptitle(title)
    return figure


def show_batch(size):
    """A batch size in few characters: 512, 1k, 1.5k."""
    return str(size) if size < 1024 or size % 512 else f'{size / 1024:g}k'


def _set_up(panel, points):
    panel.set_axis_on()
    panel.grid(alpha=0.3)
    panel.spines[['top', 'right']].set_visible(False)
    batches = sorted({point.batch_size for point in points})
    panel.set_xscale('log', base=2)
    panel.set_xticks(batches, [show_batch(batch) for batch in batches])
    panel.xaxis.set_minor_locator(NullLocator())
    # Room on both sides, also around a single batch size.
    panel.set_xlim(batches[0] / 1.6, batches[-1] * 1.6)
    panel.set_xlabel('batch size (images)')


def _draw_accuracy(panel, points):
    _draw_lines(panel, points, lambda point: None if _diverged(point) else point.value)
    diverged = [point for point in points if _diverged(point)]
    if diverged:
        low, high = panel.get_ylim()
        panel.set_ylim(bottom=low - 0.12 * (high - low))
    # Below all values, the methods beside each other.
    methods = list(dict.fromkeys(point.method for point in diverged))
    for point in diverged:
        shift = methods.index(point.method) - (len(methods) - 1) / 2
        panel.plot(
            point.batch_size * 1.12**shift,
            0.03,
            marker='x',
            markersize=8,
            markeredgewidth=2,
            color=STYLES[point.method][1],
            alpha=PAPER_ALPHA if point.from_paper else 1,
            transform=panel.get_xaxis_transform(),
            clip_on=False,
            gid='diverged',
        )


def _draw_time(panel, points):
    hours = [point.hours for point in points if point.hours]
    factor, unit = (1, 'hours') if max(hours) >= 1 else (60, 'minutes')
    panel.set_ylabel(f'training time ({unit})')
    panel.set_yscale('log')
    _draw_lines(panel, points, lambda point: point.hours and point.hours * factor)
    # At least a labelled tick or two, also around a single value.
    panel.set_ylim(min(hours) * factor / 2, max(hours) * factor * 2)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{y:.3g}'))
    panel.yaxis.set_minor_locator(NullLocator())


def _draw_lines(panel, points, value_of):
    """One line for each method, the paper's behind and paler."""
    for from_paper in (True, False):
        for method, (_, colour, marker, dashes) in STYLES.items():
            runs = {}
            for point in points:
                value = value_of(point)
                if (point.method, point.from_paper) == (method, from_paper) and (
                    value is not None
                ):
                    runs.setdefault(point.batch_size, []).append(value)
            for batch, values in runs.items():
                if len(values) > 1:
                    panel.plot(
                        [batch, batch],
                        [min(values), max(values)],
                        color=colour,
                        linewidth=5,
                        alpha=0.3,
                        gid=f'range {method}',
                    )
            if runs:
                panel.plot(
                    sorted(runs),
                    [statistics.mean(runs[batch]) for batch in sorted(runs)],
                    color=colour,
                    marker=marker,
                    linestyle=dashes,
                    linewidth=1.5 if from_paper else 2,
                    markersize=7,
                    markerfacecolor='white' if from_paper else colour,
                    alpha=PAPER_ALPHA if from_paper else 1,
                    zorder=2 if from_paper else 3,
                    gid=f'{"paper" if from_paper else "measured"} {method}',
                )


def _diverged(point):
    return point.value == 'NaN' or (
        point.value is not None and not math.isfinite(point.value)
    )


def _add_legend(figure, points):
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle=dashes, label=name)
        for method, (name, colour, marker, dashes) in STYLES.items()
        if any(point.method == method for point in points)
    ]
    grey = dict(color='0.2', marker='o', linestyle='none')
    if any(point.from_paper for point in points):
        handles.append(
            Line2D(
                [], [], label='the paper', markerfacecolor='white', alpha=0.5, **grey
            )
        )
        if not all(point.from_paper for point in points):
            handles.append(Line2D([], [], label='measured', **grey))
    if any(_diverged(point) for point in points):
        handles.append(Line2D([], [], label='diverged', **grey | dict(marker='x')))
    figure.legend(handles=handles, loc='outside lower center', ncols=5, frameon=False)


def main(argv=None):
    """Collect the points and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'folders',
        nargs='*',
        help='work folders named as their configs; by default the tables of the paper',
    )
    parser.add_argument(
        '--work-dirs',
        default='work_dirs',
        help='where the runs of the tables lie; default: %(default)s',
    )
    parser.add_argument(
        '--only', help='only panels whose title holds this text, such as "Mask"'
    )
    parser.add_argument(
        '--out',
        nargs='+',
        default=['accuracy.png'],
        help='pictures to write, such as accuracy.png accuracy.svg',
    )
    parser.add_argument('--title', help='title of the figure')
    args = parser.parse_args(argv)
    plt.switch_backend('agg')
    try:
        if args.folders:
            points = folder_points(args.folders)
        else:
            points = table_points(Path(args.work_dirs))
        if args.only:
            points = [
                point for point in points if args.only.lower() in point.panel.lower()
            ]
        figure = plot_accuracy(points, title=args.title)
        plot_variance.save_figure(figure, args.out)
    except ValueError as error:
        parser.error(str(error))
    print(*args.out)


if __name__ == '__main__':
    main()
