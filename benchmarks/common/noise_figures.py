"""Figures of noise_scale.py."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from agvm_mm.method.noise_scale import ALL, relative_images, relative_updates
from agvm_mm.report.figures.style import (
    BLACK,
    BLUE,
    VERMILION,
    module_style,
    set_up_panel,
)

CURVES = (VERMILION, BLUE, BLACK)
LARGEST = 1e6
"""Upper end of a bar that reaches infinity, in images."""


def plot_predictions(rows: list[dict]) -> Figure:
    """Draw noise scales against updates, and measured against predicted Phi.

    Args:
        rows: Those of all models, see ``noise_scale.predictions``.
    """
    models = list(dict.fromkeys(row['model'] for row in rows))
    figure = Figure(figsize=(11, 4.4 * len(models)), layout='constrained')
    panels = figure.subplots(len(models), 2, squeeze=False)
    for model, (left, right) in zip(models, panels, strict=True):
        modules: dict[str, list[dict]] = {}
        for row in rows:
            if row['model'] == model and row['module'] != ALL:
                modules.setdefault(row['module'], []).append(row)
        styles = [module_style(number) for number in range(len(modules))]
        for members, style in zip(modules.values(), styles, strict=True):
            _draw_scales(left, members, style)
            _draw_phi(right, members, style)
        for panel in (left, right):
            set_up_panel(panel)
            panel.set_title(model, fontsize=11)
        left.set_yscale('log')
        left.set_xlabel('update')
        left.set_ylabel('noise scale (images)')
        right.axline((0, 0), slope=1, color='0.6', linewidth=1)
        right.set(xlim=(0, 1.05), ylim=(0, 1.05))
        right.set_xlabel('$\\Phi$ predicted from batch 64')
        right.set_ylabel('$\\Phi$ measured at 256 (filled) and 1,024')
        handles = [
            Line2D([], [], label=module, **style)
            for module, style in zip(modules, styles, strict=True)
        ]
        left.legend(handles=handles, frameon=False, fontsize=9)
    return figure


def _bars(found: Sequence[dict]) -> list[list[float]]:
    """Return the distances of both ends of intervals, as ``errorbar`` takes them."""
    return [
        [each['value'] - each['low'] for each in found],
        [min(each['high'] or LARGEST, LARGEST) - each['value'] for each in found],
    ]


def _draw_scales(panel: Axes, rows: list[dict], style: dict) -> None:
    first = [row for row in rows if row['batch'] == rows[0]['batch']]
    found = [row['noise_scale'] for row in first]
    panel.errorbar(
        [row['update'] for row in first],
        [each['value'] for each in found],
        yerr=_bars(found),
        capsize=2,
        **style,
    )


def _draw_phi(panel: Axes, rows: list[dict], style: dict) -> None:
    batches = dict.fromkeys(row['batch'] for row in rows)
    for batch, face in zip(batches, (style['color'], 'white'), strict=False):
        predicted, measured = (
            [row[name] for row in rows if row['batch'] == batch]
            for name in ('predicted', 'measured')
        )
        panel.errorbar(
            [each['value'] for each in predicted],
            [each['value'] for each in measured],
            xerr=_bars(predicted),
            yerr=_bars(measured),
            linestyle='',
            color=style['color'],
            marker=style['marker'],
            markerfacecolor=face,
            elinewidth=0.8,
        )


def plot_updates(result: dict) -> Figure:
    """Draw updates and images to the target against the batch, with the curves.

    Args:
        result: See ``noise_scale.run_updates``.
    """
    rows = [row for row in result['rows'] if row['updates']]
    batches = [row['batch'] for row in rows]
    low, high = min(batches) / 1.3, max(batches) * 1.3
    along = [low * (high / low) ** (i / 60) for i in range(61)]
    figure = Figure(figsize=(11, 4.2), layout='constrained')
    updates, images = figure.subplots(1, 2)
    for color, fit in zip(CURVES, result['fits'], strict=False):
        scale, fewest = fit['noise_scale'], fit['fewest']
        label = f'{fit["name"]}: {scale:,.0f} images'
        curve = [fewest * relative_updates(batch, scale) for batch in along]
        updates.plot(along, curve, color=color, label=label)
        curve = [fewest * scale * relative_images(batch, scale) for batch in along]
        images.plot(along, curve, color=color)
    for panel, factors in ((updates, [1] * len(rows)), (images, batches)):
        set_up_panel(panel)
        for batch, factor, row in zip(batches, factors, rows, strict=True):
            panel.plot(batch, row['updates'] * factor, 'o', color='0.2')
        panel.set_xscale('log', base=2)
        panel.set_yscale('log')
        panel.set_xticks(batches, [f'{batch:,}' for batch in batches])
        panel.set_xlabel('batch (images)')
    updates.set_ylabel('updates to the target')
    images.set_ylabel('images to the target')
    updates.legend(title='noise scale', frameon=False, fontsize=9)
    return figure
