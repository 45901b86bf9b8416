"""Draw every module's gradient variance and multiplier over the updates.

    python tools/analysis/plot_variance.py work_dirs/NAME --out variance.png

Reads what VarianceSyncHook has logged: the JSON log of a run.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

PHI_KEY = 'agvm/phi/'
MU_KEY = 'agvm/mu/'

# Okabe and Ito's colours, which colour-blind readers can tell apart; dashes and
# markers tell modules apart in print.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
DASHES = ('-', '--', '-.', ':')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')


def find_log(path):
    """The JSON log of a run.

    Args:
        path (str or Path): The log itself or a work folder; of several runs in
            one folder the latest counts.

    Returns:
        Path: ``scalars.json``.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    logs = sorted(
        path.glob('**/vis_data/scalars.json'), key=lambda log: log.stat().st_mtime
    )
    if not logs:
        raise FileNotFoundError(f'{path} has no vis_data/scalars.json: not a run?')
    return logs[-1]


def read_scalars(log):
    """Read a JSON log.

    Args:
        log (str or Path): File with one JSON object per line.

    Returns:
        list[dict]: Its records, in order.
    """
    lines = Path(log).read_text().splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def module_curves(records, prefix):
    """Collect one kind of curve by module.

    Args:
        records (list[dict]): Records of a JSON log.
        prefix (str): :data:`PHI_KEY` or :data:`MU_KEY`.

    Returns:
        dict[str, tuple[list, list]]: Updates and values by module, in the order
        in which the modules were logged.
    """
    curves = {}
    for record in records:
        for key, value in record.items():
            if key.startswith(prefix):
                updates, values = curves.setdefault(key[len(prefix) :], ([], []))
                updates.append(record['step'])
                values.append(value)
    return curves


def lr_drops(records):
    """Last logged updates before the learning rate fell to half or less."""
    rates = [(record['step'], record['lr']) for record in records if 'lr' in record]
    return [step for (step, before), (_, rate) in pairwise(rates) if rate <= before / 2]


def plot_variance(records, *, title=None):
    """Draw Phi (above) and mu (below) of every module over the updates.

    Args:
        records (list[dict]): Records of a JSON log.
        title (str, optional): Title of the figure.

    Returns:
        Figure: The figure; the caller saves and closes it.

    Raises:
        ValueError: If no variance was logged.
    """
    phi, mu = module_curves(records, PHI_KEY), module_curves(records, MU_KEY)
    if not phi:
        raise ValueError(
            f"the log has no '{PHI_KEY}<module>': was VarianceSyncHook on, and did "
            'the run get as far as its begin?'
        )
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8, 6.5), sharex=True, layout='constrained'
    )
    _draw_curves(above, phi)
    _draw_curves(below, mu)
    above.set_ylabel('gradient variance $\\Phi$')
    above.set_ylim(bottom=0)
    below.set_ylabel('learning-rate multiplier $\\mu$')
    below.set_xlabel('optimizer update')
    drops = lr_drops(records)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
        for drop in drops:
            axes.axvline(drop, color='0.5', linewidth=1, linestyle=(0, (1, 2)))
    handles, labels = above.get_legend_handles_labels()
    if drops:
        handles.append(Line2D([], [], color='0.5', linewidth=1, linestyle=(0, (1, 2))))
        labels.append('learning-rate step')
    figure.legend(handles, labels, loc='outside lower center', ncols=3, frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def save_figure(figure: Figure, path, *, dpi=130):
    """Write a figure to a file, make its folder if need be, and close it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


def _draw_curves(axes, curves):
    for number, (module, (updates, values)) in enumerate(curves.items()):
        axes.plot(
            updates,
            values,
            color=COLOURS[number % len(COLOURS)],
            linestyle=DASHES[number % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)],
            markevery=max(1, len(updates) // 12),
            markersize=5,
            linewidth=1.8,
            label=module,
        )


def main():
    """Draw the curves of one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('run', help='work folder of a run, or its scalars.json')
    parser.add_argument('--out', default='variance.png', help='picture to write')
    parser.add_argument('--title', help='title of the figure')
    args = parser.parse_args()
    plt.switch_backend('agg')
    figure = plot_variance(read_scalars(find_log(args.run)), title=args.title)
    save_figure(figure, args.out)
    print(args.out)


if __name__ == '__main__':
    main()
