"""Print the paper's tables with our config, command and result beside each cell.

    python tools/paper_tables.py                       # COCO, ADE20K: what has run
    python tools/paper_tables.py --data digits         # run the embedded twins, fill in

Results are read from the logs under ``work_dirs/<config name>``. With the digits the
cells that have not run yet are trained first, one after the other; an interrupted
call goes on where it was, and a finished cell is not run again.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from tqdm import tqdm

from agvm_mm.validation import check_number

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / 'configs' / 'paper_results.json'

# Folder of configs, and how the files of the model begin.
MODELS = {
    'faster_rcnn': ('faster_rcnn', 'faster-rcnn_r50'),
    'mask_rcnn': ('mask_rcnn', 'mask-rcnn_r50'),
    'panoptic_fpn': ('panoptic_fpn', 'panoptic-fpn_r50'),
    'semantic_fpn': ('sem_fpn', 'sem-fpn_r50'),
    'retinanet_r18': ('retinanet', 'retinanet_r18'),
    # The paper's UniNet-G is not in MMDetection: a Swin of as many parameters.
    'uninet_g': ('cascade_mask_rcnn', 'cascade-mask-rcnn_swin-1b'),
}
# The optimizer that AGVM works on in a table, and what plain training is called.
TABLE_OPTIMIZER = {
    'sgd_four_tasks': 'sgd',
    'adamw_faster_rcnn': 'adamw',
    'retinanet_extreme': 'adamw',
    'one_billion': 'adamw',
    'open_source_rerun': 'sgd',
}
METHODS = {
    'MegDet': 'sgd',
    'baseline': 'sgd',
    'LARS': 'lars',
    'AdamW': 'adamw',
    'LAMB': 'lamb',
    'PMD-LAMB': 'pmd-lamb',
}
# As the logs of MMDetection and MMSegmentation name them, and the paper's unit.
METRICS = {
    'bbox_mAP': ('coco/bbox_mAP', 100),
    'segm_mAP': ('coco/segm_mAP', 100),
    'PQ': ('coco_panoptic/PQ', 1),
    'mIoU': ('mIoU', 1),
}
FINISHED = 'finished.json'


@dataclass
class Cell:
    """One number of one table.

    Args:
        table (str): Key of the table.
        model (str): Model, as in the paper's tables.
        batch_size (int): Images of an update.
        column (str): Method, as in the table's head.
        metric (str): A key of ``METRICS``.
        paper (float | str, optional): The paper's number, 'NaN' where it diverged.
        status (str): How the paper's number is known.
        config (str, optional): Our config's path; None where we have none.
        command (str, optional): What trains it.
        found (float | str, optional): The last result in the work folder.
    """

    table: str
    model: str
    batch_size: int
    column: str
    metric: str
    paper: float | str | None
    status: str
    config: str | None = None
    command: str | None = None
    found: float | str | None = None


def method_of(table: str, column: str) -> str | None:
    """The method's name in our file names; None for SAM, which we do not have."""
    if column == 'AGVM':
        return f'agvm-{TABLE_OPTIMIZER[table]}'
    return METHODS.get(column)


def config_metadata() -> dict[str, dict]:
    """What the metafiles say of each config of the zoo, by path."""
    return {
        model['Config']: model['Metadata']
        for path in sorted((ROOT / 'configs').glob('*/metafile.yml'))
        for model in yaml.safe_load(path.read_text())['Models']
    }


def training_command(config: str, metadata: dict | None, ranks: int) -> str:
    """What trains a config on so many ranks.

    Args:
        config (str): Path from the root.
        metadata (dict, optional): Of the config, from :func:`config_metadata`; None
            for the digits.
        ranks (int): Processes, or GPUs.

    Returns:
        str: The command, with fewer images on each rank than the config has where the
        total batch is no multiple of them.
    """
    command = f'tools/dist_train.sh {config} {ranks}'
    if metadata is None:
        return command
    on_each, rest = divmod(metadata['Total Batch Size'], ranks)
    images = metadata['Images per GPU']
    if rest or on_each % images == 0:  # Nothing to do, or nothing to be done.
        return command
    images = max(n for n in range(1, images) if on_each % n == 0)
    return f'{command} --cfg-options train_dataloader.batch_size={images}'


def find_config(
    table: str, row: dict, column: str, metadata: dict[str, dict]
) -> str | None:
    """The config that makes a cell on COCO or ADE20K.

    Args:
        table (str): Key of the table.
        row (dict): A row of the paper's results.
        column (str): Name of the column.
        metadata (dict[str, dict]): From :func:`config_metadata`.

    Returns:
        str or None: Its path from the root; None if there is none.

    Raises:
        LookupError: If several fit.
    """
    method = method_of(table, column)
    if method is None:
        return None
    folder, model = MODELS[row['model']]
    pattern = f'{folder}/{model}*_{method}_b{row["batch_size"]}_*.py'
    found = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / 'configs').glob(pattern))
    ]
    # Some models are trained for two lengths; the re-run had 16 epochs.
    if table == 'open_source_rerun':
        found = [path for path in found if '_16e_' in path]
    elif len(found) > 1:
        found = [
            path for path in found if metadata[path]['Updates'] == row['iterations']
        ]
    if len(found) > 1:
        raise LookupError(f'{table}, {row["model"]}, {column}: {", ".join(found)}')
    return found[0] if found else None


def find_digits_config(table: str, row: dict, column: str) -> str | None:
    """The embedded twin of a cell; twins exist at batch 256."""
    method = method_of(table, column)
    if method is None or row['batch_size'] != 256:
        return None
    model = MODELS[row['model']][1].split('_')[0]
    found = sorted((ROOT / 'configs/digits').glob(f'{model}_*_{method}_b256_*.py'))
    return found[0].relative_to(ROOT).as_posix() if found else None


def read_cells(data: str, ranks: int) -> list[Cell]:
    """Every cell of the paper's tables, with config and command.

    Args:
        data (str): 'paper' for COCO and ADE20K, 'digits' for the embedded twins.
        ranks (int): Processes (or GPUs) of the command.
    """
    paper = json.loads(PAPER.read_text())
    metadata = config_metadata()
    cells = []
    for key, table in paper['tables'].items():
        rows = table['rows']
        if data == 'digits':
            rows = digits_rows(rows)
        for row in rows:
            for index, column in enumerate(table['columns']):
                status = row.get('status', table.get('status', 'exact'))
                if isinstance(status, list):
                    status = status[index]
                if data == 'digits':
                    config = find_digits_config(key, row, column)
                else:
                    config = find_config(key, row, column, metadata)
                command = config and training_command(
                    config, metadata.get(config), ranks
                )
                cells.append(
                    Cell(
                        table=key,
                        model=row['model'],
                        batch_size=row['batch_size'],
                        column=column,
                        metric=row['metric'],
                        paper=row['values'][index] if data == 'paper' else None,
                        status=status if data == 'paper' else 'digits',
                        config=config,
                        command=command,
                    )
                )
    return cells


def digits_rows(rows: list[dict]) -> list[dict]:
    """One row at batch 256 for each model of a table."""
    models = {row['model']: row for row in rows}
    return [dict(row, batch_size=256) for row in models.values()]


def work_dir(cell: Cell, root: Path) -> Path:
    """Where a cell's config trains by default."""
    return root / Path(cell.config).stem


def read_result(folder: Path, metric: str) -> float | str | None:
    """The last validation result of a run, in the paper's unit.

    Args:
        folder (Path): The run's work folder.
        metric (str): A key of ``METRICS``.

    Returns:
        float, 'NaN' if the loss was not finite at the end, or None if there is no
        result.
    """
    key, factor = METRICS[metric]
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    rows = [
        json.loads(line)
        for log in logs
        for line in log.read_text().splitlines()
        if line.strip()
    ]
    losses = [row['loss'] for row in rows if 'loss' in row]
    if losses and not math.isfinite(losses[-1]):
        return 'NaN'
    results = [row[key] for row in rows if key in row]
    return round(results[-1] * factor, 1) if results else None


def run_cell(cell: Cell, root: Path, run=subprocess.run) -> None:
    """Train a cell if it is not finished, going on from its checkpoint.

    Args:
        cell (Cell): With a command.
        root (Path): Folder of work folders.
        run (callable): Like ``subprocess.run``. Defaults to that.

    Raises:
        RuntimeError: If the training fails.
    """
    folder = work_dir(cell, root)
    if (folder / FINISHED).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [*cell.command.split(), '--work-dir', str(folder), '--resume']
    log = folder / 'output.txt'
    # The Python that runs this, whatever the PATH says.
    env = dict(os.environ, PYTHON=sys.executable)
    with open(log, 'a') as output:
        done = run(command, cwd=ROOT, env=env, stdout=output, stderr=output)
    diverged = read_result(folder, cell.metric) == 'NaN'
    if done.returncode and not diverged:
        raise RuntimeError(
            f'{" ".join(command)} failed with {done.returncode}: see {log}'
        )
    (folder / FINISHED).write_text(json.dumps(dict(command=command)))


def to_markdown(cells: list[Cell], titles: dict[str, str]) -> str:
    """The tables, one after the other; each cell reads 'paper / found'.

    Args:
        cells (list[Cell]): In the order of the tables.
        titles (dict[str, str]): Titles by key.
    """
    lines = []
    for table in dict.fromkeys(cell.table for cell in cells):
        of_table = [cell for cell in cells if cell.table == table]
        columns = list(dict.fromkeys(cell.column for cell in of_table))
        lines += [
            f'### {titles[table]}',
            '',
            f'| model | metric | batch | {" | ".join(columns)} |',
            '|' + ' --- |' * (3 + len(columns)),
        ]
        rows: dict[tuple, list[Cell]] = {}
        for cell in of_table:
            key = (cell.model, cell.metric, cell.batch_size)
            rows.setdefault(key, []).append(cell)
        for (model, metric, batch), row in rows.items():
            numbers = ' | '.join(f'{show(c.paper)} / {show(c.found)}' for c in row)
            lines.append(f'| {model} | {metric} | {batch} | {numbers} |')
        lines.append('')
        for cell in of_table:
            what = f'`{cell.command}`' if cell.command else 'no config'
            lines.append(
                f'- {cell.model}, batch {cell.batch_size}, {cell.column}: {what}'
                + (f" (paper's number: {cell.status})" if cell.paper else '')
            )
        lines.append('')
    return '\n'.join(lines)


def show(number: float | str | None) -> str:
    """A number as the tables show it."""
    return '-' if number is None else str(number)


def parse_args(argv=None) -> argparse.Namespace:
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
    parser.add_argument('--work-dirs', default='work_dirs', help='where runs lie')
    parser.add_argument('--ranks', type=int, help='8 for paper, 2 for digits')
    parser.add_argument('--only', help='cells whose config holds this text')
    parser.add_argument('--json', help='write the cells to this file as well')
    parser.add_argument(
        '--no-run', action='store_true', help='digits: only read what has run'
    )
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Run what is missing, read what is there, print."""
    args = parse_args(argv)
    ranks = args.ranks or (2 if args.data == 'digits' else 8)
    check_number('--ranks', ranks, low=1, integer=True)
    root = Path(args.work_dirs).absolute()
    cells = read_cells(args.data, ranks)
    if args.only:
        cells = [cell for cell in cells if cell.config and args.only in cell.config]
        if not cells:
            sys.exit(f'no cell has a config with {args.only!r} in its path')
    with_config = {cell.config: cell for cell in cells if cell.config}
    if args.data == 'digits' and not args.no_run:
        with tqdm(with_config.values(), unit='run', file=sys.stderr) as progress:
            for cell in progress:
                progress.set_description(Path(cell.config).stem)
                run_cell(cell, root)
    for cell in cells:
        if cell.config:
            cell.found = read_result(work_dir(cell, root), cell.metric)
    titles = {
        key: table['title']
        for key, table in json.loads(PAPER.read_text())['tables'].items()
    }
    print("Each cell: the paper's number / the number found in the work folder.\n")
    print(to_markdown(cells, titles))
    if args.json:
        Path(args.json).write_text(
            json.dumps([asdict(cell) for cell in cells], indent=1) + '\n'
        )


if __name__ == '__main__':
    main()
