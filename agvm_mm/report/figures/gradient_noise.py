"""Figure of the noise scales, and of Phi and mu against the batch size."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from agvm_mm.method.noise_scale import ALL, UNRESOLVED, predicted_variance
from agvm_mm.report.figures.style import BLACK, module_style, set_up_panel
from agvm_mm.report.forecast import settled_multipliers
from agvm_mm.report.gradient_noise.intervals import BATCHES, NoiseReport

LOW, HIGH = BATCHES[0] / 1.3, BATCHES[-1] * 1.3
"""Limits of the axis of batches."""
CURVE = [LOW * (HIGH / LOW) ** (i / 120) for i in range(121)]
"""Batches of the points of a predicted curve."""


def plot_gradient_noise(report: NoiseReport, *, title: str | None = None) -> Figure:
    """Draw Phi and mu against the batch, and the noise scale of each module.

    Points with bars are measured, lines are predicted from the noise scale of all
    images. Bars are the intervals of 95% of the text, up to the limit of the axis. A
    module whose noise scale is not resolved has no line, and an arrow from the lower
    end of its noise scale. Pyplot does not manage the figure, so nothing must be
    closed.
    """
    names = [name for name in report.modules if name != ALL]
    styles = {name: module_style(index) for index, name in enumerate(names)}
    figure = Figure(figsize=(13, 4.6), layout='constrained')
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    for panel in panels:
        set_up_panel(panel)
        panel.set_xscale('log')
    phi, mu, scales = panels
    mu.axhline(1, color='0.7', linewidth=0.8, zorder=0)
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
    panel.set_xlim(LOW, HIGH)
    panel.xaxis.set_major_locator(FixedLocator([32, 128, 512, 2048, 10240]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter('{x:,.0f}')
    panel.set_xlabel('batch (images)')
    rows = [row for row in report.batches if row.measured and LOW <= row.batch <= HIGH]
    for number, (name, style) in enumerate(styles.items()):
        if value == 'mu' and name == report.anchor:
            continue
        curve = _predicted(report, name, value)
        if not math.isnan(curve[0]):
            panel.plot(CURVE, curve, gid=f'predicted {name}', **dict(style, marker=''))
        # Bars of several modules next to each other.
        shift = 1.04 ** (number - (len(styles) - 1) / 2)
        found = np.array([getattr(row, value)[name] for row in rows]).reshape(-1, 3)
        values, low, high = found.T
        panel.errorbar(
            [row.batch * shift for row in rows],
            values,
            yerr=[values - low, high - values],
            color=style['color'],
            marker=style['marker'],
            linestyle='',
            markersize=5,
            elinewidth=1.2,
            capsize=2,
            gid=f'measured {name}',
        )


def _predicted(report: NoiseReport, name: str, value: str) -> list[float]:
    """Return a predicted curve, of NaN if it is not resolved."""
    found = {each: report.modules[each].noise_scale for each in (report.anchor, name)}
    scales = {
        each: scale.value if scale else UNRESOLVED for each, scale in found.items()
    }
    if value == 'phi':
        return [predicted_variance(batch, scales[name]) for batch in CURVE]
    settings = scales, report.anchor, report.ratio_bounds
    return [settled_multipliers(batch, *settings)[name] for batch in CURVE]


def _draw_scales(
    panel: Axes, report: NoiseReport, styles: dict[str, dict[str, Any]]
) -> None:
    known = [each.lower_bound for each in report.modules.values() if each.lower_bound]
    scales = (each.noise_scale for each in report.modules.values())
    known += [scale.high for scale in scales if scale]
    if known:
        panel.set_xlim(min(known) / 2, max(known) * 3)
    styles = styles | {ALL: dict(color=BLACK, marker='*')}
    for row, (name, found) in enumerate(report.modules.items()):
        scale, low, color = found.noise_scale, found.lower_bound, styles[name]['color']
        if scale is not None:
            panel.errorbar(
                scale.value,
                row,
                xerr=[[scale.value - scale.low], [scale.high - scale.value]],
                color=color,
                marker=styles[name]['marker'],
                markersize=9 if name == ALL else 6,
                capsize=3,
                gid=f'scale {name}',
            )
            continue
        text = 'not resolved'
        if low:
            text += f', above {low:,.0f}'
            end = panel.get_xlim()[1] / 1.3
            arrow = dict(arrowstyle='->', color=color, linewidth=1.5)
            panel.annotate('', (end, row), (low, row), arrowprops=arrow)
            panel.plot(low, row, marker='|', color=color, gid=f'bound {name}')
        place = panel.get_yaxis_transform()
        look = dict(ha='center', va='bottom', color=color, fontsize=9)
        panel.text(0.5, row - 0.12, text, transform=place, **look)
    panel.set_yticks(range(len(report.modules)), list(report.modules))
    panel.set_ylim(len(report.modules) - 0.5, -0.5)
    panel.set_xlabel('noise scale (images)')
