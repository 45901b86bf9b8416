"""Add AGVM to every stock config of the toolboxes; compare optimizers and gradients.

    python tools/dev/zoo.py            # write docs/zoo.md, about 20 minutes
    python tools/dev/zoo.py --only detr --out zoo.md

Exits with status 1 if AGVM changes the optimizer of a config, or if one update of a
family of models is not right.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stock import families, stock, zoo_page

ROOT = Path(__file__).resolve().parents[2]
FAULTS = ('different', 'rejected', 'failed')
"""Outcomes after which the exit status is 1."""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--out',
        type=Path,
        default=ROOT / 'docs' / 'zoo.md',
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


def update_families(
    results: list[stock.Result],
) -> dict[families.Family, families.Update]:
    """Run and print one update of each family."""
    updates = {}
    for family, configs in families.by_family(results).items():
        update = updates[family] = families.update_family(configs)
        print(f'{update.config}: {zoo_page.update_cell(update)}', flush=True)
    return updates


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
        updates = update_families(results)
    found = {result.outcome for result in results}
    found |= {update.outcome for update in updates.values()}
    args.out.write_text(zoo_page.page(results, updates), encoding='utf-8')
    return int(not found.isdisjoint(FAULTS))


if __name__ == '__main__':
    sys.exit(main())
