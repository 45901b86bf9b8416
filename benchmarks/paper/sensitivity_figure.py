"""Figure of accuracy against the learning rate."""

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from agvm_mm.report.figures.style import module_style, set_up_panel
from benchmarks.paper.accuracy_figure import METRIC_NAMES


def plot_sensitivity(results: Sequence[dict], metric: str) -> Figure:
    """Draw a panel for each batch size with a curve for each method.

    A curve is the mean over the seeds, its band reaches from the lowest to the
    highest. Seeds differ more than methods, so all curves of a panel have the same
    seeds: those that all its methods have. Rates at which a method lacks one of them or
    diverged are not drawn.

    Args:
        results: Runs with 'run' (with 'batch_size' and 'seed'), 'method', 'lr' and
            'value' in percent, None for a run that diverged.
        metric: Accuracy, a key of ``METRIC_NAMES``.

    Raises:
        ValueError: If there is no run.
    """
    if not results:
        raise ValueError('there is nothing to draw: no run is finished')
    curves: dict[int, dict[str, dict[float, dict]]] = {}
    for each in results:
        methods = curves.setdefault(each['run']['batch_size'], {})
        rates = methods.setdefault(each['method'], {})
        rates.setdefault(each['lr'], {})[each['run']['seed']] = each['value']
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
        seeds = set.intersection(
            *(
                {seed for by_seed in each.values() for seed in by_seed}
                for each in found.values()
            )
        )
        for method in found:
            look = module_style(methods.index(method))
            whole = {}
            for lr, by_seed in sorted(found[method].items()):
                values = [by_seed.get(seed) for seed in seeds]
                if values and None not in values:
                    whole[lr] = values
            means = list(map(statistics.mean, whole.values()))
            panel.plot(list(whole), means, label=method, **look)
            low = list(map(min, whole.values()))
            high = list(map(max, whole.values()))
            panel.fill_between(list(whole), low, high, color=look['color'], alpha=0.15)
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
