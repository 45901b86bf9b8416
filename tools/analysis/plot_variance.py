"""Draw every module's gradient variance, multiplier and noise scale over the updates.

    python tools/analysis/plot_variance.py work_dirs/NAME --out variance.png

Reads the JSON logs of a run with VarianceSyncHook. Noise scales are in images, on a
logarithmic axis, with a line at the batch of the run, which the logs of MMEngine's own
loops do not contain: those count iterations, several of which may be an update. Noise
scales are gaps where they are not resolved.
"""

import argparse

from agvm_mm import cli
from agvm_mm.report.figures import plot_run, save_figure
from agvm_mm.report.logs import read_run


def main() -> None:
    """Draw the curves of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('run', help='work folder of a run, or its scalars.json')
    cli.add_figure_flags(parser, out='variance.png')
    args = parser.parse_args()
    try:
        save_figure(plot_run(read_run(args.run), title=args.title), args.out)
    except (FileNotFoundError, ValueError) as error:
        # Matplotlib raises ValueError for an unknown file format.
        parser.error(str(error))
    print(*args.out)


if __name__ == '__main__':
    main()
