"""Figure of accuracy against the learning rate."""

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from agvm_mm.analysis.figures.accuracy import METRIC_NAMES
from agvm_mm.analysis.figures.style import module_style, set_up_panel


def plot_sensitivity(results: Sequence[dict], metric: str) -> Figure:
    """Draw a panel for each batch size with a curve for each method.

    A curve is the mean over the seeds, its band reaches from the lowest to the
    highest. Only rates at which a method has as many runs as any in the panel are
    drawn: seeds differ more than methods. A rate at which a run diverged has no mean.

    Args:
        results: Runs with 'run' (with 'batch_size'), 'method', 'lr' and 'value' in
            percent, None for a run that diverged.
        metric: Accuracy, a key of ``METRIC_NAMES``.

    Raises:
        ValueError: If there is no run.
    """
    if not results:
        raise ValueError('there is nothing to draw: no run is finished')
    curves: dict[int, dict[str, dict[float, list]]] = {}
    for each in results:
        methods = curves.setdefault(each['run']['batch_size'], {})
        rates = methods.setdefault(each['method'], {})
        rates.setdefault(each['lr'], []).append(each['value'])
    methods = list(dict.fromkeys(each['method'] for each in results))
    size = max(6, 4.2 * len(curves)), 4
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for panel, (batch_size, found) in zip(axes, sorted(curves.items()), strict=True):
        set_up_panel(panel)
        panel.set_title(f'batch {batch_size}', fontsize=10)
        panel.set_xlabel('learning rate')
        panel.set_xscale('log')
        rates = sorted({lr for each in found.values() for lr in each})
        panel.xaxis.set_major_locator(FixedLocator(rates))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticklabels([f'{lr:g}' for lr in rates], rotation=45)
        seeds = max(len(values) for each in found.values() for values in each.values())
        for method in found:
            look = module_style(methods.index(method))
            whole = [
                lr
                for lr, values in sorted(found[method].items())
                if None not in values and len(values) == seeds
            ]
            values = [found[method][lr] for lr in whole]
            panel.plot(whole, list(map(statistics.mean, values)), label=method, **look)
            low, high = list(map(min, values)), list(map(max, values))
            panel.fill_between(whole, low, high, color=look['color'], alpha=0.15)
    axes[0].set_ylabel(METRIC_NAMES[metric])
    handles = {
        label: handle
        for panel in axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles, loc='outside lower center', ncols=5, frameon=False
    )
    return figure
