"""Figure of accuracy against the learning rate."""

from collections.abc import Iterable, Sequence
from statistics import mean

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from agvm_mm.report.figures.style import module_style, set_up_panel

METRIC_NAMES = {'bbox_mAP': 'box mAP (%)', 'mIoU': 'mIoU (%)'}


def by_rate(
    results: Iterable[dict],
) -> dict[tuple[int, str], dict[float, dict[int, float | None]]]:
    """Return values by seed, by learning rate, by batch size and method; sorted."""
    groups: dict[tuple[int, str], dict[float, dict[int, float | None]]] = {}
    for each in sorted(results, key=lambda each: each['lr']):
        rates = groups.setdefault((each['run']['batch_size'], each['method']), {})
        rates.setdefault(each['lr'], {})[each['run']['seed']] = each['value']
    return dict(sorted(groups.items()))


def plot_sensitivity(results: Sequence[dict], metric: str) -> Figure:
    """Draw a panel for each batch size with a curve for each method.

    A curve is the mean over the seeds, its band reaches from the lowest to the
    highest. Seeds differ more than methods, so all curves of a panel have the same
    seeds: those that all its methods have. Rates at which a method lacks one of them or
    diverged are not drawn.

    Raises:
        ValueError: If there is no run.
    """
    if not results:
        raise ValueError('there is nothing to draw: no run is finished')
    groups = by_rate(results)
    methods = list(dict.fromkeys(each['method'] for each in results))
    batch_sizes = list(dict.fromkeys(batch_size for batch_size, _ in groups))
    size = max(6, 4.2 * len(batch_sizes)), 4
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(1, len(batch_sizes), squeeze=False, sharey=True)[0]
    for panel, batch_size in zip(axes, batch_sizes, strict=True):
        found = {m: groups[batch_size, m] for m in methods if (batch_size, m) in groups}
        set_up_panel(panel)
        panel.set_title(f'batch {batch_size}', fontsize=10)
        panel.set_xlabel('learning rate')
        panel.set_xscale('log')
        rates = sorted({lr for each in found.values() for lr in each})
        panel.xaxis.set_major_locator(FixedLocator(rates))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticklabels([f'{lr:g}' for lr in rates], rotation=45)
        seeds = set.intersection(
            *(set().union(*each.values()) for each in found.values())
        )
        for method, by_lr in found.items():
            look = module_style(methods.index(method))
            values = {
                lr: [by_seed.get(seed) for seed in seeds]
                for lr, by_seed in by_lr.items()
            }
            whole = {
                lr: each for lr, each in values.items() if each and None not in each
            }
            means, low, high = (
                list(map(each, whole.values())) for each in (mean, min, max)
            )
            panel.plot(list(whole), means, label=method, **look)
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
