"""Evaluate a checkpoint, with MMDetection's flags except --show and --tta."""

import argparse
from collections.abc import Sequence

from agvm_mm import cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_run_flags(parser)
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument('--out', help='store the predictions in this .pkl file')
    parser.add_argument(
        '--show-dir',
        help="draw predictions into this folder: a detector's within the folder of "
        "the run; a segmenter's within the work folder, one image in "
        'default_hooks.visualization.interval (50)',
    )
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out}')
    return args


def main() -> None:
    """Build a Runner from the config and test."""
    args = parse_args()
    cfg = cli.load_run_config(args)
    # To resume, the training would have to be built.
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show_dir:
        cli.draw_predictions(cfg, args.show_dir)
    if args.out:
        cli.dump_predictions(cfg, args.out)
    cli.build_runner(cfg, args.launcher).test()


if __name__ == '__main__':
    main()
