"""Figure of the gradient variance, multiplier and noise scale of every module."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from agvm_mm.method.noise_scale import ALL
from agvm_mm.report.figures.style import module_style, set_up_panel
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

# Looks of lines. Single measurements are behind their running mean.
MEASUREMENT = dict(color='0.3', linewidth=0.8, alpha=0.45)
RUNNING_MEAN = dict(color='0.3', linewidth=1.8)
LR_STEP = dict(color='0.45', linewidth=1, linestyle=(0, (1, 2)))
TOTAL_BATCH = dict(color='0.3', linewidth=1.2, linestyle=(0, (7, 3)))
WHOLE_NETWORK = dict(color='0.15', linestyle='-', marker='.', linewidth=2.6)

PANELS = {
    PHI_KEY: 'gradient variance $\\Phi$',
    MU_KEY: 'learning-rate multiplier $\\mu$',
    NOISE_KEY: 'noise scale in images',
}
"""Labels of the panels, from top to bottom, by what they show."""


def plot_run(records: Sequence[Record], *, title: str | None = None) -> Figure:
    """Draw Phi, mu and the noise scales of a run.

    Thin lines are the measurements of Phi, thick ones their mean over a twentieth of
    them, at least 5. Multipliers and noise scales are averages already and drawn as
    they are. A noise scale that is not resolved leaves a gap. The total batch is a line
    among them if the log has it. What the run has not logged has no panel. Pyplot does
    not manage the figure: there is nothing to close.

    Raises:
        ValueError: If the run has logged no variance.
    """
    curves = {key: module_curves(records, key) for key in PANELS}
    if not curves[PHI_KEY]:
        raise ValueError(
            f"the log has no '{PHI_KEY}<module>': was VarianceSyncHook on, and did the "
            'run reach its begin?'
        )
    shown = {key: of_key for key, of_key in curves.items() if of_key}
    names = dict.fromkeys(name for of_key in shown.values() for name in of_key)
    modules = [name for name in names if name != ALL]
    styles = {name: module_style(index) for index, name in enumerate(modules)}
    if ALL in names:
        styles[ALL] = WHOLE_NETWORK
    size = 8, 0.5 + 3 * len(shown)
    figure = Figure(figsize=size, layout='constrained')
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    drops, batch = lr_drops(records), total_batch(records)
    for (key, of_key), panel in zip(shown.items(), panels, strict=True):
        set_up_panel(panel)
        panel.set_ylabel(PANELS[key])
        for drop in drops:
            panel.axvline(drop, **LR_STEP)
        for module, (updates, values) in of_key.items():
            style = styles[module]
            if key == PHI_KEY:
                panel.plot(updates, values, **MEASUREMENT | dict(color=style['color']))
                values = smooth(values, max(5, len(values) // 20))
            marks = dict(markersize=5, markevery=marked_points(values))
            panel.plot(updates, values, label=module, **style, **marks)
        if key == MU_KEY:
            panel.axhline(1, color='0.7', linewidth=0.8, zorder=0)
        if key == NOISE_KEY:
            _finish_noise_panel(panel, of_key, batch)
    panels[0].set_ylim(bottom=0)
    # In MMEngine's own loops an update may be several iterations, which logs count.
    counts_updates = any('batch_size' in record for record in records)
    panels[-1].set_xlabel('optimizer update' if counts_updates else 'iteration')
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    looks = {
        'whole network' if name == ALL else name: style | dict(markersize=5)
        for name, style in styles.items()
    }
    if NOISE_KEY in shown and batch is not None:
        looks[f'batch of {batch:,} images'] = TOTAL_BATCH
    looks |= {'measurement': MEASUREMENT, 'running mean': RUNNING_MEAN}
    if drops:
        looks['learning-rate step'] = LR_STEP
    handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    columns = math.ceil(len(handles) / math.ceil(len(handles) / 4))
    figure.legend(
        handles=handles, loc='outside lower center', ncols=columns, frameon=False
    )
    if title:
        figure.suptitle(title)
    return figure


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


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Compute the mean over a centered window, which is cut off at both ends.

    An even window counts as the next odd one.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low = np.maximum(0, places - window // 2)
    high = np.minimum(len(values), places + window // 2 + 1)
    return ((sums[high] - sums[low]) / (high - low)).tolist()
