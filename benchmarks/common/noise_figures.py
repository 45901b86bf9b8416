"""Figures of noise_scale.py."""

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
        own = [row for row in rows if row['model'] == model]
        modules = [m for m in dict.fromkeys(r['module'] for r in own) if m != ALL]
        for number, module in enumerate(modules):
            style = module_style(number)
            members = [row for row in own if row['module'] == module]
            _draw_scales(left, members, style)
            _draw_phi(right, members, style)
        _finish(left, right, model)
        handles = [
            Line2D([], [], label=module, **module_style(number))
            for number, module in enumerate(modules)
        ]
        left.legend(handles=handles, frameon=False, fontsize=9)
    return figure


def _draw_scales(panel: Axes, rows: list[dict], style: dict) -> None:
    first = [row for row in rows if row['batch'] == rows[0]['batch']]
    found = [row['noise_scale'] for row in first]
    known = [each.value for each in found]
    panel.errorbar(
        [row['update'] for row in first],
        known,
        yerr=[
            [value - each.low for value, each in zip(known, found, strict=True)],
            [
                min(each.high, LARGEST) - value
                for value, each in zip(known, found, strict=True)
            ],
        ],
        capsize=2,
        **style,
    )


def _draw_phi(panel: Axes, rows: list[dict], style: dict) -> None:
    filled = dict.fromkeys(row['batch'] for row in rows)
    for batch, face in zip(filled, (style['color'], 'white'), strict=False):
        members = [row for row in rows if row['batch'] == batch]
        bars = [
            [
                [row[name].value - row[name].low for row in members],
                [row[name].high - row[name].value for row in members],
            ]
            for name in ('predicted', 'measured')
        ]
        panel.errorbar(
            [row['predicted'].value for row in members],
            [row['measured'].value for row in members],
            xerr=bars[0],
            yerr=bars[1],
            linestyle='',
            color=style['color'],
            marker=style['marker'],
            markerfacecolor=face,
            elinewidth=0.8,
        )


def _finish(left: Axes, right: Axes, model: str) -> None:
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


def plot_updates(result: dict) -> Figure:
    """Draw updates and images to the target against the batch, with the curves.

    Args:
        result: See ``noise_scale.run_updates``.
    """
    rows = [row for row in result['rows'] if row['updates']]
    batches = [row['batch'] for row in rows]
    figure = Figure(figsize=(11, 4.2), layout='constrained')
    updates, images = figure.subplots(1, 2)
    low, high = min(batches) / 1.3, max(batches) * 1.3
    along = [low * (high / low) ** (i / 60) for i in range(61)]
    for color, fit in zip(CURVES, result['fits'], strict=False):
        scale, fewest = fit['noise_scale'], fit['fewest']
        label = f'{fit["name"]}: {scale:,.0f} images'
        updates.plot(
            along,
            [fewest * relative_updates(batch, scale) for batch in along],
            color=color,
            label=label,
        )
        images.plot(
            along,
            [fewest * scale * relative_images(batch, scale) for batch in along],
            color=color,
        )
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
