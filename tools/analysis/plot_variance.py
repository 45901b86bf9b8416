"""Draw every module's gradient variance, multiplier and noise scale over the updates.

    python tools/analysis/plot_variance.py work_dirs/NAME --out variance.png
    python tools/analysis/plot_variance.py work_dirs/A work_dirs/B --out ab.png ab.svg

Reads the JSON logs of one or several runs with VarianceSyncHook, and draws the runs
side by side. Noise scales are in images, on a logarithmic axis, with a line at the
batch of the run. They are gaps where they are not resolved. The logs of MMEngine's own
loops do not contain the batch; the line is missing there.
"""

import argparse

from agvm_mm import cli
from agvm_mm.report.figures import plot_runs, save_figure
from agvm_mm.report.logs import (
    NOISE_KEY,
    module_curves,
    name_runs,
    read_run,
    total_batch,
)


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'runs', nargs='+', help='work folders of runs, or their scalars.json'
    )
    cli.add_figure_flags(parser, out='variance.png')
    parser.add_argument('--names', nargs='+', help='a name for each run')
    parser.add_argument(
        '--window',
        type=cli.count,
        help='measurements in the running mean of Phi; by default a twentieth of '
        'them and at least 5; 1: no mean',
    )
    return parser


def main() -> None:
    """Draw the curves of one or several runs."""
    parser = make_parser()
    args = parser.parse_args()
    names = args.names or name_runs(args.runs)
    if len(names) != len(args.runs):
        parser.error(f'{len(args.runs)} runs, but {len(names)} --names')
    if len(set(names)) < len(names):
        parser.error(f'runs with the same name: {", ".join(names)}; give --names')
    try:
        runs = {
            name: read_run(path) for name, path in zip(names, args.runs, strict=True)
        }
        figure = plot_runs(runs, title=args.title, window=args.window)
        save_figure(figure, args.out)
    except (FileNotFoundError, ValueError) as error:
        # Matplotlib raises ValueError for an unknown file format.
        parser.error(str(error))
    for name, records in runs.items():
        if module_curves(records, NOISE_KEY) and total_batch(records) is None:
            print(f'{name}: no line at the total batch, which its log does not contain')
    print(*args.out)


if __name__ == '__main__':
    main()
