"""Draw every module's gradient variance and multiplier over the updates.

    python tools/analysis/plot_variance.py work_dirs/NAME --out variance.png
    python tools/analysis/plot_variance.py work_dirs/A work_dirs/B --out ab.png ab.svg

Reads what VarianceSyncHook has logged: the JSON logs of one or several runs, which
are drawn side by side. Thin lines are the measurements, thick ones their running
mean; the multipliers are averages already and drawn as they are.
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
LR_STEP = dict(color='0.45', linewidth=1, linestyle=(0, (1, 2)))


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


def read_run(path):
    """Read the training records of a run, also of one that was resumed.

    Args:
        path (str or Path): A JSON log or a work folder. Where a log goes on from an
            earlier one of the same folder, both are joined; one that starts anew
            replaces what was before it.

    Returns:
        list[dict]: Records of training, without those of validation.

    Raises:
        FileNotFoundError: If there is no log.
    """
    latest = find_log(path)
    path = Path(path)
    logs = [latest] if path.is_file() else path.glob('**/vis_data/scalars.json')
    joined = []
    for log in sorted(logs, key=lambda log: log.stat().st_mtime):
        records = [record for record in read_scalars(log) if 'lr' in record]
        if not records:
            continue
        first = records[0]['step']
        interval = records[1]['step'] - first if len(records) > 1 else 1
        resumed = first > interval
        kept = [record for record in joined if resumed and record['step'] < first]
        joined = kept + records
    return joined


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


def running_mean(values, window):
    """Mean over a centred window, of which half is left at either end.

    Args:
        values (Sequence[float]): Numbers.
        window (int): How many of them are averaged; an even number counts as the
            odd one above.

    Returns:
        list[float]: As many numbers.
    """
    means = []
    for index in range(len(values)):
        part = values[max(0, index - window // 2) : index + window // 2 + 1]
        means.append(sum(part) / len(part))
    return means


def smooth(updates, values, window, breaks=()):
    """Running mean of a curve that does not reach across learning-rate steps.

    Args:
        updates (Sequence[int]): Where the values were measured.
        values (Sequence[float]): The values.
        window (int): See :func:`running_mean`.
        breaks (Sequence[int]): Updates after which the mean begins anew.

    Returns:
        list[float]: As many values.
    """
    part_of = [sum(update > end for end in breaks) for update in updates]
    smoothed = []
    for part in sorted(set(part_of)):
        inside = [
            value for value, of in zip(values, part_of, strict=True) if of == part
        ]
        smoothed += running_mean(inside, window)
    return smoothed


def drop_repeats(records):
    """Records with a measurement, each measurement once.

    MMEngine logs the last value again at every log interval until there is a new one.

    Args:
        records (list[dict]): Records of a JSON log.

    Returns:
        list[dict]: Some of them.
    """
    measured, last = [], None
    for record in records:
        phi = {key: value for key, value in record.items() if key.startswith(PHI_KEY)}
        if phi and phi != last:
            measured.append(record)
            last = phi
    return measured


def plot_variance(records, *, title=None, window=None):
    """Draw Phi (above) and mu (below) of every module over the updates.

    Args:
        records (list[dict]): Records of a JSON log.
        title (str, optional): Title of the figure.
        window (int, optional): See :func:`plot_runs`.

    Returns:
        Figure: The figure; the caller saves and closes it.

    Raises:
        ValueError: If no variance was logged.
    """
    return plot_runs({'': records}, title=title, window=window)


def plot_runs(runs, *, title=None, window=None):
    """Draw Phi (above) and mu (below) of several runs, side by side.

    Args:
        runs (dict[str, list[dict]]): Records of each run by its name.
        title (str, optional): Title of the figure.
        window (int, optional): Measurements in the running mean of Phi. Defaults to
            None, a twentieth of them and at least 5.

    Returns:
        Figure: The figure; the caller saves and closes it.

    Raises:
        ValueError: If a run has logged no variance.
    """
    modules = []
    for name, records in runs.items():
        found = module_curves(records, PHI_KEY)
        if not found:
            raise ValueError(
                f"the log {name and f'of {name} '}has no '{PHI_KEY}<module>': was "
                'VarianceSyncHook on, and did the run get as far as its begin?'
            )
        modules += found
    # A module looks the same in all runs.
    styles = {
        module: _style(number) for number, module in enumerate(dict.fromkeys(modules))
    }

    count = len(runs)
    figure, axes = plt.subplots(
        2,
        count,
        figsize=(8 if count == 1 else 4.8 * count, 6.5),
        sharex='col',
        sharey='row',
        squeeze=False,
        layout='constrained',
    )
    for (name, records), (above, below) in zip(runs.items(), axes.T, strict=True):
        _draw_run(above, below, records, styles, window)
        above.set_title(name, fontsize=11)
        below.set_xlabel('optimizer update')
    axes[0, 0].set_ylabel('gradient variance $\\Phi$')
    axes[0, 0].set_ylim(bottom=0)
    axes[1, 0].set_ylabel('learning-rate multiplier $\\mu$')
    handles = [
        Line2D([], [], label=module, markersize=5, **style)
        for module, style in styles.items()
    ]
    if any(lr_drops(records) for records in runs.values()):
        handles.append(Line2D([], [], label='learning-rate step', **LR_STEP))
    figure.legend(
        handles=handles,
        loc='outside lower center',
        ncols=5,
        frameon=False,
    )
    if title:
        figure.suptitle(title)
    return figure


def save_figure(figure: Figure, path, *, dpi=130):
    """Write a figure to a file, make its folder if need be, and close it.

    Args:
        figure (Figure): The figure.
        path (str or Path or Sequence): The file, or several; what follows the dot
            says in which format.
        dpi (int): Pixels per inch. Defaults to 130.
    """
    for file in [path] if isinstance(path, str | Path) else path:
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=dpi)
    plt.close(figure)


def _draw_run(above, below, records, styles, window):
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
        panel.grid(alpha=0.3)
        panel.spines[['top', 'right']].set_visible(False)
        for drop in drops:
            panel.axvline(drop, **LR_STEP)


def _style(number):
    """The look of the curve of a module or method, by its number."""
    return dict(
        color=COLOURS[number % len(COLOURS)],
        linestyle=DASHES[number % len(DASHES)],
        marker=MARKERS[number % len(MARKERS)],
        linewidth=1.8,
    )


def _marked(style, updates):
    """A look with about a dozen markers along the curve."""
    return style | dict(markersize=5, markevery=max(1, len(updates) // 12))


def name_runs(paths):
    """A short name for each run: the last part of the paths that tells them apart.

    Args:
        paths (Sequence[str]): Work folders or logs.

    Returns:
        list[str]: As many names.
    """
    parts = [Path(path).absolute().parts for path in paths]
    for level in range(1, min(map(len, parts)) + 1):
        names = [part[-level] for part in parts]
        if len(set(names)) == len(names):
            return names
    return [part[-1] for part in parts]


def main(argv=None):
    """Draw the curves of one or several runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'runs', nargs='+', help='work folders of runs, or their scalars.json'
    )
    parser.add_argument(
        '--out',
        nargs='+',
        default=['variance.png'],
        help='pictures to write, such as variance.png variance.svg',
    )
    parser.add_argument('--names', nargs='+', help='a name for each run')
    parser.add_argument('--title', help='title of the figure')
    parser.add_argument(
        '--window',
        type=int,
        help='measurements in the running mean of Phi, by default a twentieth of '
        'them and at least 5; 1: no mean',
    )
    args = parser.parse_args(argv)
    names = args.names or name_runs(args.runs)
    if len(names) != len(args.runs):
        parser.error(f'{len(args.runs)} runs, but {len(names)} --names')
    if len(set(names)) < len(names):
        parser.error(f'runs with the same name: {", ".join(names)}; give --names')
    if args.window is not None and args.window < 1:
        parser.error(f'--window must be at least 1, got {args.window}')
    plt.switch_backend('agg')
    try:
        runs = {
            name: read_run(path) for name, path in zip(names, args.runs, strict=True)
        }
        figure = plot_runs(runs, title=args.title, window=args.window)
        save_figure(figure, args.out)
    except (FileNotFoundError, ValueError) as error:
        # Also of a kind of picture that matplotlib does not know.
        parser.error(str(error))
    print(*args.out)


if __name__ == '__main__':
    main()
