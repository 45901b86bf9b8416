"""Add AGVM to every stock config of the toolboxes and compare the optimizers.

    python tools/dev/zoo.py            # write docs/zoo.md, about 6 minutes
    python tools/dev/zoo.py --only detr --out zoo.md

Exits with status 1 if the optimizer of a config is another one than without AGVM.
"""

import argparse
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agvm_mm.analysis import stock
from agvm_mm.analysis.root import repository_root


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--out',
        type=Path,
        default=repository_root() / 'docs' / 'zoo.md',
        help='page to write',
    )
    parser.add_argument(
        '--only', default='', help='examine only configs whose name contains this'
    )
    return parser.parse_args()


def report(result: stock.Result) -> None:
    """Print a config that is not the same."""
    if result.outcome != 'same':
        print(f'{result.outcome:<12}{result.config}: {result.reason}', flush=True)


@contextmanager
def no_log() -> Iterator[None]:
    """Drop log messages up to warnings."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def main() -> int:
    """Write the page, and return the exit status."""
    args = parse_args()
    configs = [
        config
        for toolbox in stock.TOOLBOXES
        for config in stock.stock_configs(toolbox)
        if args.only in config
    ]
    with warnings.catch_warnings(), no_log():
        # Of the toolboxes, about their own configs.
        warnings.simplefilter('ignore')
        results = stock.examine_all(configs, report)
    counts = Counter(result.outcome for result in results)
    for outcome, meaning in stock.OUTCOMES.items():
        print(f'{outcome:<12}{counts[outcome]:>5}  {meaning}')
    args.out.write_text(stock.page(results), encoding='utf-8')
    return int(counts['different'] > 0)


if __name__ == '__main__':
    sys.exit(main())
