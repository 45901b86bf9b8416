"""Figure of accuracy and training time against the batch size."""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from agvm_mm.report.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILION,
    set_up_panel,
)
from benchmarks.paper.points import Point

METRIC_NAMES = {
    'bbox_mAP': 'box mAP (%)',
    'segm_mAP': 'mask mAP (%)',
    'PQ': 'PQ (%)',
    'mIoU': 'mIoU (%)',
}
PAPER_ALPHA = 0.5
COLUMNS = 3
"""Panels side by side."""


class MethodStyle(NamedTuple):
    """Look of the curve of a method."""

    label: str
    color: str
    marker: str
    dashes: str


METHOD_STYLES = {
    # The strongest colors are AGVM's.
    'agvm-sgd': MethodStyle('AGVM + SGD', BLUE, 'o', '-'),
    'agvm-adamw': MethodStyle('AGVM + AdamW', VERMILION, 's', '-'),
    'sgd': MethodStyle('SGD', BLACK, '^', '--'),
    'adamw': MethodStyle('AdamW', PURPLE, 'v', '--'),
    'lars': MethodStyle('LARS', GREEN, 'D', '-.'),
    'lamb': MethodStyle('LAMB', ORANGE, 'P', '-.'),
    'pmd-lamb': MethodStyle('PMD-LAMB', GREEN, 'X', ':'),
    'sam': MethodStyle('SAM', SKY_BLUE, 'D', ':'),
}
"""Styles by method; SAM is only in the paper's tables."""


def plot_accuracy(points: Sequence[Point], *, title: str | None = None) -> Figure:
    """Draw accuracy, and below it training time, for each panel.

    Several runs of the same method and batch size, for example with several seeds,
    are drawn as their mean, with a bar from the lowest to the highest. A cross at the
    lower edge is a run that diverged.

    Args:
        points: Runs to draw.
        title: Title of the figure.

    Returns:
        The figure, which pyplot does not manage: there is nothing to close.

    Raises:
        ValueError: If there is no point.
    """
    if not points:
        raise ValueError('there is nothing to draw: no run has a result')
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.panel, point.metric), []).append(point)
    panels = list(groups.values())
    columns = min(COLUMNS, len(panels))
    # What each row of axes shows: accuracy, or the times where known.
    rows = []
    for start in range(0, len(panels), columns):
        band = panels[start : start + columns]
        rows.append((_draw_accuracy, band))
        if any(point.hours for panel in band for point in panel):
            rows.append((_draw_time, band))
    size = max(6, 4.2 * columns), 3 * len(rows) + 0.6
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for row, (draw, band) in zip(axes, rows, strict=True):
        for panel, members in zip(row, band, strict=False):
            draw(panel, members)
    _add_legend(figure, points)
    if title:
        figure.suptitle(title)
    return figure


def _draw_accuracy(panel: Axes, points: Sequence[Point]) -> None:
    _set_up(panel, points)
    panel.set_title(points[0].panel, fontsize=10)
    panel.set_ylabel(METRIC_NAMES[points[0].metric])
    _draw_methods(panel, points, lambda point: None if point.diverged else point.value)
    diverged = [point for point in points if point.diverged]
    if diverged:
        low, high = panel.get_ylim()
        panel.set_ylim(bottom=low - 0.12 * (high - low))
    # Below all values, the methods side by side.
    methods = list(dict.fromkeys(point.method for point in diverged))
    for point in diverged:
        shift = methods.index(point.method) - (len(methods) - 1) / 2
        panel.plot(
            point.batch_size * 1.12**shift,
            0.03,
            marker='x',
            markersize=8,
            markeredgewidth=2,
            color=METHOD_STYLES[point.method].color,
            alpha=PAPER_ALPHA if point.from_paper else 1,
            transform=panel.get_xaxis_transform(),
            clip_on=False,
            gid='diverged',
        )


def _draw_time(panel: Axes, points: Sequence[Point]) -> None:
    hours = [point.hours for point in points if point.hours]
    if not hours:
        return
    _set_up(panel, points)
    factor, unit = (1, 'hours') if max(hours) >= 1 else (60, 'minutes')
    panel.set_ylabel(f'training time ({unit})')
    panel.set_yscale('log')
    _draw_methods(panel, points, lambda point: point.hours and point.hours * factor)
    # Room for at least one labeled tick, also around a single value.
    panel.set_ylim(min(hours) * factor / 2, max(hours) * factor * 2)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{y:.3g}'))
    panel.yaxis.set_minor_locator(NullLocator())


def _set_up(panel: Axes, points: Sequence[Point]) -> None:
    panel.set_axis_on()
    set_up_panel(panel)
    batches = sorted({point.batch_size for point in points})
    # 512, 1k, 1.5k
    labels = [str(n) if n < 1024 or n % 512 else f'{n / 1024:g}k' for n in batches]
    panel.set_xscale('log', base=2)
    panel.set_xticks(batches, labels)
    panel.xaxis.set_minor_locator(NullLocator())
    # Room on both sides, also around a single batch size.
    panel.set_xlim(batches[0] / 1.6, batches[-1] * 1.6)
    panel.set_xlabel('batch size (images)')


def _draw_methods(
    panel: Axes,
    points: Sequence[Point],
    value_of: Callable[[Point], float | None],
) -> None:
    """Draw mean and range of each method's values; the paper's are behind and paler."""
    for paper in (True, False):
        for method, style in METHOD_STYLES.items():
            runs: dict[int, list[float]] = {}
            for point in sorted(points, key=lambda point: point.batch_size):
                value = value_of(point)
                ours = (point.method, point.from_paper) == (method, paper)
                if ours and value is not None:
                    runs.setdefault(point.batch_size, []).append(value)
            if not runs:
                continue
            bar = dict(color=style.color, linewidth=5, alpha=0.3, gid=f'range {method}')
            for batch, values in runs.items():
                if len(values) > 1:
                    panel.plot([batch] * 2, [min(values), max(values)], **bar)
            panel.plot(
                list(runs),
                [mean(values) for values in runs.values()],
                color=style.color,
                marker=style.marker,
                linestyle=style.dashes,
                linewidth=1.5 if paper else 2,
                markersize=7,
                markerfacecolor='white' if paper else style.color,
                alpha=PAPER_ALPHA if paper else 1,
                zorder=2 if paper else 3,
                gid=f'{"paper" if paper else "measured"} {method}',
            )


def _add_legend(figure: Figure, points: Sequence[Point]) -> None:
    methods = {point.method for point in points}
    handles = [
        Line2D(
            [],
            [],
            color=style.color,
            marker=style.marker,
            linestyle=style.dashes,
            label=style.label,
        )
        for method, style in METHOD_STYLES.items()
        if method in methods
    ]
    gray = dict(color='0.2', marker='o', linestyle='none')
    if any(point.from_paper for point in points):
        pale = gray | dict(markerfacecolor='white', alpha=0.5)
        handles.append(Line2D([], [], label='the paper', **pale))
        if not all(point.from_paper for point in points):
            handles.append(Line2D([], [], label='measured', **gray))
    if any(point.diverged for point in points):
        handles.append(Line2D([], [], label='diverged', **gray | dict(marker='x')))
    figure.legend(handles=handles, loc='outside lower center', ncols=5, frameon=False)
