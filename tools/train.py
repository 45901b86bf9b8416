"""Train a detector or segmenter from a config, with MMDetection's flags."""

import argparse
from collections.abc import Sequence

from agvm_mm import cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_run_flags(parser)
    parser.add_argument(
        '--amp', action='store_true', help='train in automatic mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate linearly from auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint; without a path, from the latest one of '
        'the work folder, or start if there is none',
    )
    return parser.parse_args(argv)


def main() -> None:
    """Build a Runner from the config and train."""
    args = parse_args()
    cfg = cli.load_run_config(args)
    if args.amp:
        cli.enable_amp(cfg)
    if args.auto_scale_lr:
        cli.enable_auto_scale_lr(cfg)
    cli.set_resume(cfg, args.resume)
    cli.train(cli.build_runner(cfg, args.launcher))


if __name__ == '__main__':
    main()
