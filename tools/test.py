"""Evaluate a checkpoint."""

import argparse
from collections.abc import Sequence

from agvm_mm import cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_run_flags(parser)
    parser.add_argument('checkpoint', help='path of the checkpoint')
    return parser.parse_args(argv)


def main() -> None:
    """Build a Runner from the config and test."""
    args = parse_args()
    cfg = cli.load_run_config(args)
    cfg.load_from = args.checkpoint
    cli.build_runner(cfg, args.launcher).test()


if __name__ == '__main__':
    main()
