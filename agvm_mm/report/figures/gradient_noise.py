"""Figure of the noise scales, and of Phi and mu against the batch size."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from agvm_mm.method.modulator import raw_multiplier
from agvm_mm.method.noise_scale import ALL, predicted_variance
from agvm_mm.report.figures.style import BLACK, module_style, set_up_panel
from agvm_mm.report.gradient_noise.intervals import BATCHES, Estimate, NoiseReport

POINTS = 120
"""Points of a predicted curve."""


def plot_gradient_noise(report: NoiseReport, *, title: str | None = None) -> Figure:
    """Draw Phi and mu against the batch, and the noise scale of each module.

    Points with bars are measured, lines are predicted from the noise scale of all
    images. Bars are intervals of 95%. A module whose noise scale is not resolved has no
    line, and an arrow from the lower end of its noise scale.

    Args:
        report: The report.
        title: Title of the figure.

    Returns:
        The figure, which pyplot does not manage: there is nothing to close.
    """
    names = [name for name in report.modules if name != ALL]
    styles = {name: module_style(index) for index, name in enumerate(names)}
    figure = Figure(figsize=(13, 4.6), layout='constrained')
    phi, mu, scales = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    _draw_against_batch(phi, report, styles, 'phi')
    _draw_against_batch(mu, report, styles, 'mu')
    _draw_scales(scales, report, styles)
    phi.set_ylabel('gradient variance $\\Phi$')
    # Phi that is not resolved may have bars up to 2.
    phi.set_ylim(0, min(1.25, max(1.05, phi.get_ylim()[1])))
    mu.set_ylabel('learning-rate multiplier $\\mu$')
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    gray = dict(color='0.4')
    handles.append(Line2D([], [], marker='o', linestyle='', label='measured', **gray))
    handles.append(Line2D([], [], label='predicted', **gray))
    figure.legend(handles=handles, loc='outside lower center', ncols=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _draw_against_batch(
    panel: Axes, report: NoiseReport, styles: dict[str, dict[str, Any]], value: str
) -> None:
    set_up_panel(panel)
    panel.set_xscale('log')
    low, high = BATCHES[0] / 1.3, BATCHES[-1] * 1.3
    panel.set_xlim(low, high)
    panel.xaxis.set_major_locator(FixedLocator([32, 128, 512, 2048, 10240]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.0f}'))
    panel.set_xlabel('batch (images)')
    if value == 'mu':
        panel.axhline(1, color='0.7', linewidth=0.8, zorder=0)
    batches = [low * (high / low) ** (i / POINTS) for i in range(POINTS + 1)]
    rows = [row for row in report.rows if row.measured and low <= row.batch <= high]
    for number, (name, style) in enumerate(styles.items()):
        if value == 'mu' and name == report.anchor:
            continue
        curve = _predicted(report, name, value, batches)
        if curve:
            line = {k: v for k, v in style.items() if k != 'marker'}
            panel.plot(batches, curve, gid=f'predicted {name}', **line)
        # Bars of several modules next to each other.
        shift = 1.04 ** (number - (len(styles) - 1) / 2)
        _draw_points(
            panel,
            [row.batch * shift for row in rows],
            [getattr(row, value)[name] for row in rows],
            dict(color=style['color'], marker=style['marker'], gid=f'measured {name}'),
        )


def _predicted(
    report: NoiseReport, name: str, value: str, batches: list[float]
) -> list[float]:
    """Return a predicted curve, empty if it is not resolved."""
    own, anchor = (report.noise_scales[each] for each in (name, report.anchor))
    if own is None or (value == 'mu' and anchor is None):
        return []
    variances = [predicted_variance(batch, own.value) for batch in batches]
    if value == 'phi':
        return variances
    return [
        raw_multiplier(
            predicted_variance(batch, anchor.value), variance, report.ratio_bounds
        )
        for batch, variance in zip(batches, variances, strict=True)
    ]


def _draw_points(
    panel: Axes, positions: list[float], found: list[Estimate], style: dict[str, Any]
) -> None:
    values = [each.value for each in found]
    bars = [
        [each.value - each.low for each in found],
        [each.high - each.value for each in found],
    ]
    if not all(map(math.isfinite, [*bars[0], *bars[1]])):
        bars = None
    panel.errorbar(
        positions,
        values,
        yerr=bars,
        linestyle='',
        markersize=5,
        elinewidth=1.2,
        capsize=2,
        **style,
    )


def _draw_scales(
    panel: Axes, report: NoiseReport, styles: dict[str, dict[str, Any]]
) -> None:
    set_up_panel(panel)
    panel.set_xscale('log')
    names = list(report.noise_scales)
    known = [low for low in report.lower_bounds.values() if low]
    known += [each.high for each in report.noise_scales.values() if each]
    if known:
        panel.set_xlim(min(known) / 2, max(known) * 3)
    for row, name in enumerate(names):
        style = styles.get(name, dict(color=BLACK, marker='*'))
        _draw_scale(
            panel,
            row,
            name,
            report.noise_scales[name],
            report.lower_bounds[name],
            style,
        )
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_xlabel('noise scale (images)')


def _draw_scale(
    panel: Axes,
    row: int,
    name: str,
    scale: Estimate | None,
    low: float | None,
    style: dict[str, Any],
) -> None:
    color = style['color']
    if scale is not None:
        panel.errorbar(
            scale.value,
            row,
            xerr=[[scale.value - scale.low], [scale.high - scale.value]],
            color=color,
            marker=style['marker'],
            markersize=9 if name == ALL else 6,
            capsize=3,
            gid=f'scale {name}',
        )
        return
    text = 'not resolved'
    if low:
        text += f', above {low:,.0f}'
        end = panel.get_xlim()[1] / 1.3
        arrow = dict(arrowstyle='->', color=color, linewidth=1.5)
        panel.annotate('', (end, row), (low, row), arrowprops=arrow)
        panel.plot(low, row, marker='|', color=color, gid=f'bound {name}')
    panel.text(
        0.5,
        row - 0.12,
        text,
        transform=panel.get_yaxis_transform(),
        ha='center',
        va='bottom',
        color=color,
        fontsize=9,
    )
