"""Figure of the gradient variance and the multiplier of every module."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from agvm_mm.analysis.figures.style import LR_STEP, module_style, set_up_panel
from agvm_mm.analysis.logs import (
    MU_KEY,
    PHI_KEY,
    Record,
    drop_repeats,
    lr_drops,
    module_curves,
)


def plot_variance(
    records: Sequence[Record], *, title: str | None = None, window: int | None = None
) -> Figure:
    """Draw Phi (above) and mu (below) of every module over the updates.

    Args:
        records: Records of a run.
        title: Title of the figure.
        window: See :func:`plot_runs`.

    Returns:
        The figure, which pyplot does not manage: there is nothing to close.

    Raises:
        ValueError: If no variance was logged.
    """
    return plot_runs({'': records}, title=title, window=window)


def plot_runs(
    runs: Mapping[str, Sequence[Record]],
    *,
    title: str | None = None,
    window: int | None = None,
) -> Figure:
    """Draw Phi (above) and mu (below) of several runs, side by side.

    Thin lines are the measurements, thick ones their running mean. The multipliers
    are averages already and drawn as they are.

    Args:
        runs: Records of each run by its name.
        title: Title of the figure.
        window: Measurements in the running mean of Phi. Defaults to a twentieth of
            them, and at least 5.

    Returns:
        The figure, which pyplot does not manage: there is nothing to close.

    Raises:
        ValueError: If a run has logged no variance.
    """
    # A module has the same look in all runs.
    styles = {name: module_style(i) for i, name in enumerate(_module_names(runs))}
    count = len(runs)
    width = 8 if count == 1 else 4.8 * count
    figure = Figure(figsize=(width, 6.5), layout='constrained')
    axes = figure.subplots(2, count, sharex='col', sharey='row', squeeze=False)
    for (name, records), (above, below) in zip(runs.items(), axes.T, strict=True):
        _draw_run(above, below, records, styles, window)
        above.set_title(name, fontsize=11)
        below.set_xlabel('optimizer update')
    axes[0, 0].set_ylabel('gradient variance $\\Phi$')
    axes[0, 0].set_ylim(bottom=0)
    axes[1, 0].set_ylabel('learning-rate multiplier $\\mu$')
    _add_legend(figure, styles, any(map(lr_drops, runs.values())))
    if title:
        figure.suptitle(title)
    return figure


def _add_legend(
    figure: Figure, styles: Mapping[str, dict[str, Any]], has_lr_steps: bool
) -> None:
    handles = [
        Line2D([], [], label=module, markersize=5, **style)
        for module, style in styles.items()
    ]
    if has_lr_steps:
        handles.append(Line2D([], [], label='learning-rate step', **LR_STEP))
    figure.legend(handles=handles, loc='outside lower center', ncols=5, frameon=False)


def _module_names(runs: Mapping[str, Sequence[Record]]) -> list[str]:
    modules: list[str] = []
    for name, records in runs.items():
        found = module_curves(records, PHI_KEY)
        if not found:
            raise ValueError(
                f"the log {name and f'of {name} '}has no '{PHI_KEY}<module>': was "
                'VarianceSyncHook on, and did the run reach its begin?'
            )
        modules += found
    return list(dict.fromkeys(modules))


def _draw_run(
    above: Axes,
    below: Axes,
    records: Sequence[Record],
    styles: Mapping[str, dict[str, Any]],
    window: int | None,
) -> None:
    drops = lr_drops(records)
    measured = drop_repeats(records)
    for module, (updates, values) in module_curves(measured, PHI_KEY).items():
        style = styles[module]
        above.plot(updates, values, color=style['color'], linewidth=0.8, alpha=0.45)
        means = smooth(updates, values, window or max(5, len(values) // 20), drops)
        above.plot(updates, means, label=module, **_marked(style, updates))
    for module, (updates, values) in module_curves(measured, MU_KEY).items():
        below.plot(updates, values, label=module, **_marked(styles[module], updates))
    below.axhline(1, color='0.7', linewidth=0.8, zorder=0)
    for panel in (above, below):
        set_up_panel(panel)
        for drop in drops:
            panel.axvline(drop, **LR_STEP)


def _marked(style: dict[str, Any], updates: Sequence[int]) -> dict[str, Any]:
    """Add about a dozen markers along the curve to a style."""
    return style | dict(markersize=5, markevery=max(1, len(updates) // 12))


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Compute the mean over a centered window, which is cut off at both ends.

    Args:
        values: Numbers.
        window: Numbers in the window; an even number counts as the next odd one.
    """
    means = []
    for index in range(len(values)):
        part = values[max(0, index - window // 2) : index + window // 2 + 1]
        means.append(sum(part) / len(part))
    return means


def smooth(
    updates: Sequence[int],
    values: Sequence[float],
    window: int,
    breaks: Sequence[int] = (),
) -> list[float]:
    """Compute a running mean that does not extend across learning-rate steps.

    Args:
        updates: Updates at which the values were measured.
        values: The values.
        window: See :func:`running_mean`.
        breaks: Updates after which the mean starts again.
    """
    part_of = [sum(update > end for end in breaks) for update in updates]
    smoothed = []
    for part in sorted(set(part_of)):
        inside = [v for v, of in zip(values, part_of, strict=True) if of == part]
        smoothed += running_mean(inside, window)
    return smoothed
