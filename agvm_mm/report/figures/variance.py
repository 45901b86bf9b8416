"""Figure of the gradient variance, multiplier and noise scale of every module."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from agvm_mm.method.noise_scale import ALL
from agvm_mm.report.figures.style import (
    LR_STEP,
    MEASUREMENT,
    RUNNING_MEAN,
    TOTAL_BATCH,
    WHOLE_NETWORK,
    module_style,
    set_up_panel,
)
from agvm_mm.report.logs import (
    MU_KEY,
    NOISE_KEY,
    PHI_KEY,
    Curves,
    Record,
    lr_drops,
    module_curves,
    total_batch,
)

PANELS = {
    PHI_KEY: 'gradient variance $\\Phi$',
    MU_KEY: 'learning-rate multiplier $\\mu$',
    NOISE_KEY: 'noise scale in images',
}
"""Labels of the panels, from top to bottom, by what they show."""


def plot_runs(
    runs: Mapping[str, Sequence[Record]],
    *,
    title: str | None = None,
    window: int | None = None,
) -> Figure:
    """Draw Phi, mu and the noise scales of several runs, side by side.

    Thin lines are the measurements of Phi, thick ones their running mean. Multipliers
    and noise scales are averages already and drawn as they are. A noise scale that is
    not resolved leaves a gap. The total batch is a line among them if it is known, see
    :func:`total_batch`. What a run has not logged has no panel. Pyplot does not manage
    the figure: there is nothing to close.

    Args:
        runs: Records of each run by its name.
        title: Title of the figure.
        window: Measurements in the running mean of Phi. Defaults to a twentieth of
            them, and at least 5.

    Raises:
        ValueError: If a run has logged no variance.
    """
    curves = {
        name: {key: module_curves(records, key) for key in PANELS}
        for name, records in runs.items()
    }
    for name, of_run in curves.items():
        if not of_run[PHI_KEY]:
            raise ValueError(
                f"the log {name and f'of {name} '}has no '{PHI_KEY}<module>': was "
                'VarianceSyncHook on, and did the run reach its begin?'
            )
    logged = [key for key in PANELS if any(each[key] for each in curves.values())]
    names = [name for run in curves.values() for each in run.values() for name in each]
    modules = [name for name in dict.fromkeys(names) if name != ALL]
    styles = {name: module_style(index) for index, name in enumerate(modules)}
    if ALL in names:
        styles[ALL] = WHOLE_NETWORK
    width = 8 if len(runs) == 1 else 4.8 * len(runs)
    figure = Figure(figsize=(width, 0.5 + 3 * len(logged)), layout='constrained')
    axes = figure.subplots(
        len(logged), len(runs), sharex='col', sharey='row', squeeze=False
    )
    for (name, records), column in zip(runs.items(), axes.T, strict=True):
        panels = dict(zip(logged, column, strict=True))
        _draw_run(panels, curves[name], records, styles, window)
        column[0].set_title(name, fontsize=11)
    for key, row in zip(logged, axes, strict=True):
        first = next(panel for panel in row if panel.get_visible())
        first.set_ylabel(PANELS[key])
        first.tick_params(labelleft=True)  # Others of a row share its labels.
    axes[0, 0].set_ylim(bottom=0)
    looks = {
        'whole network' if name == ALL else name: style | dict(markersize=5)
        for name, style in styles.items()
    }
    batches = {total_batch(runs[name]) for name in runs if curves[name][NOISE_KEY]}
    for batch in sorted(batches - {None}):
        looks[f'batch of {batch:,} images'] = TOTAL_BATCH
    looks['measurement'] = MEASUREMENT
    looks['running mean'] = RUNNING_MEAN
    if any(map(lr_drops, runs.values())):
        looks['learning-rate step'] = LR_STEP
    handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    columns = math.ceil(len(handles) / math.ceil(len(handles) / 4))
    figure.legend(
        handles=handles, loc='outside lower center', ncols=columns, frameon=False
    )
    if title:
        figure.suptitle(title)
    return figure


def _draw_run(
    panels: Mapping[str, Axes],
    curves: Mapping[str, Curves],
    records: Sequence[Record],
    styles: Mapping[str, dict[str, Any]],
    window: int | None,
) -> None:
    """Draw a run into its panels; hide those for which it has no values."""
    drops = lr_drops(records)
    for key, panel in panels.items():
        panel.set_visible(bool(curves[key]))
    shown = [key for key in panels if curves[key]]
    for key in shown:
        panel = panels[key]
        set_up_panel(panel)
        for drop in drops:
            panel.axvline(drop, **LR_STEP)
        for module, (updates, values) in curves[key].items():
            style = styles[module]
            if key == PHI_KEY:
                panel.plot(updates, values, **MEASUREMENT | dict(color=style['color']))
                count = window or max(5, len(values) // 20)
                values = smooth(updates, values, count, drops)
            marks = dict(markersize=5, markevery=marked_points(values))
            panel.plot(updates, values, label=module, **style, **marks)
    panel.tick_params(labelbottom=True)  # Others of a column share its labels.
    panel.set_xlabel('optimizer update')
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    if MU_KEY in shown:
        panels[MU_KEY].axhline(1, color='0.7', linewidth=0.8, zorder=0)
    if NOISE_KEY in shown:
        _finish_noise_panel(panels[NOISE_KEY], curves[NOISE_KEY], total_batch(records))


def _finish_noise_panel(panel: Axes, curves: Curves, batch: int | None) -> None:
    """Make the axis logarithmic and add the line at the total batch."""
    if all(math.isnan(value) for _, values in curves.values() for value in values):
        panel.text(0.5, 0.5, 'not resolved', transform=panel.transAxes, ha='center')
        panel.set_ylim(1, batch or 10)
    panel.set_yscale('log', nonpositive='mask')
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter('{x:,g}')
    panel.yaxis.set_minor_formatter(NullFormatter())
    if batch is not None:
        panel.axhline(batch, **TOTAL_BATCH)


def marked_points(values: Sequence[float]) -> list[int]:
    """Return the positions of about a dozen markers along a curve.

    A point between two gaps (NaN) always has one: there is no line through it.
    """
    marked = np.arange(len(values)) % max(1, len(values) // 12) == 0
    gaps = np.isnan([math.nan, *values, math.nan])
    return np.flatnonzero(marked | (gaps[:-2] & gaps[2:])).tolist()


def smooth(
    updates: Sequence[int],
    values: Sequence[float],
    window: int,
    breaks: Sequence[int],
) -> list[float]:
    """Compute the mean over a centered window, which is cut off at both ends.

    Args:
        updates: Updates at which the values were measured.
        values: The values.
        window: Numbers in the window; an even number counts as the next odd one.
        breaks: Updates after which the mean starts again, in order.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    # The first and the last value of each part between two breaks.
    ends = [*np.searchsorted(updates, breaks, side='right'), len(values)]
    starts = np.repeat([0, *ends[:-1]], np.diff([0, *ends]))
    stops = np.repeat(ends, np.diff([0, *ends]))
    places = np.arange(len(values))
    low = np.maximum(starts, places - window // 2)
    high = np.minimum(stops, places + window // 2 + 1)
    return ((sums[high] - sums[low]) / (high - low)).tolist()
