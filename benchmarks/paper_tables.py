"""Print the paper's tables with our config, command and result for each cell.

    python benchmarks/paper_tables.py                       # COCO, ADE20K: what has run
    python benchmarks/paper_tables.py --data digits         # train the embedded twins

Reads the results from the logs under ``work_dirs/<config name>``. A result "differs" if
its run has another batch, length or config than the cell's, or was interrupted. With
the digits, the table has all twins, and those that have not run yet are trained first,
one after the other. An interrupted call can be repeated: it resumes the cell it was at,
and does not run finished cells again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from agvm_mm.validation import check_number
from benchmarks.paper.tables import (
    NODE_RANKS,
    Cell,
    fill_cell,
    read_cells,
    run_cell,
    to_markdown,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--data',
        choices=['paper', 'digits'],
        default='paper',
        help='paper: COCO and ADE20K, read what has run; digits: run the twins',
    )
    parser.add_argument('--work-dirs', default='work_dirs', help='folder of the runs')
    parser.add_argument('--ranks', type=int, help='8 for paper, 2 for digits')
    parser.add_argument(
        '--node-ranks',
        type=int,
        default=NODE_RANKS,
        help='paper: ranks on one machine; more --ranks need several',
    )
    parser.add_argument('--only', help='only cells whose config contains this text')
    parser.add_argument('--json', help='write the cells to this file as well')
    parser.add_argument(
        '--no-run', action='store_true', help='digits: only read what has run'
    )
    return parser.parse_args()


def train_missing(cells: Sequence[Cell], root: Path) -> None:
    """Train the configs of the cells that are not finished."""
    with_config = {cell.config: cell for cell in cells if cell.config}
    with tqdm(with_config.values(), unit='run', file=sys.stderr) as progress:
        for cell in progress:
            progress.set_description(Path(cell.config).stem)
            run_cell(cell, root)


def main() -> None:
    """Run the missing cells, read the results, and print the tables."""
    args = parse_args()
    ranks = args.ranks or (2 if args.data == 'digits' else 8)
    check_number('--ranks', ranks, low=1, integer=True)
    check_number('--node-ranks', args.node_ranks, low=1, integer=True)
    root = Path(args.work_dirs).absolute()
    cells = read_cells(args.data, ranks, args.node_ranks)
    if args.only:
        cells = [cell for cell in cells if cell.config and args.only in cell.config]
        if not cells:
            sys.exit(f'no cell has a config with {args.only!r} in its path')
    if args.data == 'digits' and not args.no_run:
        train_missing(cells, root)
    for cell in cells:
        if cell.config:
            fill_cell(cell, root)
    if args.data == 'paper':
        print("Each cell: the paper's number / the number found in the work folder.\n")
        if ranks > args.node_ranks:
            print(
                'Run a command on every machine, with its own NODE_RANK from 0 on; '
                'MASTER_ADDR is the first machine.\n'
            )
    print(to_markdown(cells))
    if args.json:
        rows = [asdict(cell) for cell in cells]
        Path(args.json).write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
