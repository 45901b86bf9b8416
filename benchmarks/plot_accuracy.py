"""Draw accuracy and training time against the batch size, method by method.

    python benchmarks/plot_accuracy.py --out accuracy.png
    python benchmarks/plot_accuracy.py work_dirs/*_digits --out digits.png

Without folders: every table of the paper, with the runs under
``work_dirs/<config name>`` in front of the paper's points. With folders: these runs,
a panel for each model. The folders must be named as their configs, since the name
gives model, method and batch size. Several runs of one name, for example with several
seeds, are drawn as their mean, with a bar from the lowest to the highest. A cross at
the lower edge is a run that diverged.
"""

import argparse
from pathlib import Path

from agvm_mm import cli
from agvm_mm.report.figures import save_figure
from benchmarks.paper.accuracy_figure import plot_accuracy
from benchmarks.paper.points import folder_points, table_points


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'folders',
        nargs='*',
        help='work folders named as their configs; by default the tables of the paper',
    )
    parser.add_argument(
        '--work-dirs',
        default='work_dirs',
        help='folder of the runs of the tables; default: %(default)s',
    )
    parser.add_argument(
        '--only', help='only panels whose title contains this text, for example "Mask"'
    )
    cli.add_figure_flags(parser, out='accuracy.png')
    return parser


def main() -> None:
    """Collect the points and draw them."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        if args.folders:
            points = folder_points(args.folders)
        else:
            points = table_points(Path(args.work_dirs))
        if args.only:
            only = args.only.lower()
            points = [point for point in points if only in point.panel.lower()]
        save_figure(plot_accuracy(points, title=args.title), args.out)
    except ValueError as error:
        parser.error(str(error))
    print(*args.out)


if __name__ == '__main__':
    main()
