"""The paper's tables, and the configs and commands that reproduce them."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml

from benchmarks.paper.runs import differences, last_result

ROOT = Path(__file__).resolve().parents[2]


class Method(NamedTuple):
    """Training method, as configs, tables and figures name it.

    Attributes:
        title: Name in tables and metafiles.
        optimizer: Type of the optimizer in a config.
        columns: Names of its columns in the paper's tables. AGVM's column does not
            name the optimizer: see :data:`TABLE_OPTIMIZER`.
    """

    title: str
    optimizer: str
    columns: tuple[str, ...] = ()


METHODS = {
    'sgd': Method('SGD', 'SGD', ('MegDet', 'baseline')),
    'agvm-sgd': Method('SGD + AGVM', 'SGD'),
    'lars': Method('LARS', 'BaselineLARS', ('LARS',)),
    'adamw': Method('AdamW', 'AdamW', ('AdamW',)),
    'agvm-adamw': Method('AdamW + AGVM', 'AdamW'),
    'lamb': Method('LAMB', 'BaselineLAMB', ('LAMB',)),
    'pmd-lamb': Method('PMD-LAMB', 'PMDLAMB', ('PMD-LAMB',)),
}
"""Methods by their name in config files."""

CONFIG_NAME = re.compile(
    rf'(?P<model>.+)_(?P<method>{"|".join(METHODS)})_b(?P<batch>\d+)'
    r'_(?P<length>\d+(?:e|k|iters))_(?P<dataset>[^_]+)'
)
"""``{model}_{method}_b{total batch}_{length}_{data set}``."""

TABLE_OPTIMIZER = {
    'sgd_four_tasks': 'sgd',
    'adamw_faster_rcnn': 'adamw',
    'retinanet_extreme': 'adamw',
    'one_billion': 'adamw',
    'open_source_rerun': 'sgd',
}
"""Optimizer that AGVM uses in each of the paper's tables."""

MODELS = {
    'faster_rcnn': ('faster_rcnn', 'faster-rcnn_r50'),
    'mask_rcnn': ('mask_rcnn', 'mask-rcnn_r50'),
    'panoptic_fpn': ('panoptic_fpn', 'panoptic-fpn_r50'),
    'semantic_fpn': ('sem_fpn', 'sem-fpn_r50'),
    'retinanet_r18': ('retinanet', 'retinanet_r18'),
    # The paper's UniNet-G is not in MMDetection: a Swin of as many parameters.
    'uninet_g': ('cascade_mask_rcnn', 'cascade-mask-rcnn_swin-1b'),
}
"""Folder of the configs and beginning of their names for each of the paper's models."""

METRICS = {
    'bbox_mAP': ('coco/bbox_mAP', 100),
    'segm_mAP': ('coco/segm_mAP', 100),
    'PQ': ('coco_panoptic/PQ', 1),
    'mIoU': ('mIoU', 1),
}
"""Name of each metric in the log, and the factor to the paper's unit."""

DIGITS = 'digits'
"""Key of the table of the embedded twins."""

DIGITS_UPDATES = 160
"""Updates of a twin: 10 epochs of the 4,096 scenes that ``demo.data`` writes."""

NODE_RANKS = 8
"""Ranks on one machine, unless ``--node-ranks`` says otherwise."""

TWIN_METRICS = {
    'faster-rcnn': 'bbox_mAP',
    'retinanet': 'bbox_mAP',
    'mask-rcnn': 'segm_mAP',
    'panoptic-fpn': 'PQ',
    'upernet': 'mIoU',
    'sem-fpn': 'mIoU',
}
"""Metric of each embedded twin, in the order of the table."""

DIFFERS = ' (differs)'
"""Mark of a result whose run is not a whole one of the cell's config."""

SHOWN_DIFFERENCES = 5

FINISHED = 'finished.json'
"""File in the work folder of a finished run."""


class ConfigName(NamedTuple):
    """Parts of the name of a config file.

    Attributes:
        model: Model, backbone and neck, for example 'faster-rcnn_r50_fpn'.
        method: A key of :data:`METHODS`.
        batch: Images of one update.
        length: Epochs or updates, for example '16e', '20k' or '500iters'.
        dataset: Data set, for example 'coco' or 'ade20k-512x512'.
    """

    model: str
    method: str
    batch: int
    length: str
    dataset: str

    def __str__(self) -> str:
        return f'{self.model}_{self.method}_b{self.batch}_{self.length}_{self.dataset}'


def parse_config_name(name: str) -> ConfigName | None:
    """Return the parts of a config's file name (without its ending), or None."""
    match = CONFIG_NAME.fullmatch(name)
    if match is None:
        return None
    return ConfigName(**match.groupdict() | dict(batch=int(match['batch'])))


@dataclass
class Cell:
    """Number in one of the paper's tables, or in that of the embedded twins.

    Args:
        table: Key of the table, :data:`DIGITS` for the twins.
        model: Model, as in the paper's tables.
        batch_size: Images of an update.
        column: Method, as in the table's head.
        metric: A key of :data:`METRICS`.
        paper: The paper's number, 'NaN' where it diverged.
        status: How the paper's number is known.
        config: Path of our config; None where we have none.
        updates: Updates of a whole run of the config.
        command: Command that trains it.
        found: The last result in the work folder.
        differences: How the run in the work folder differs from one of the config.
    """

    table: str
    model: str
    batch_size: int
    column: str
    metric: str
    paper: float | str | None
    status: str
    config: str | None = None
    updates: int | None = None
    command: str | None = None
    found: float | str | None = None
    differences: list[str] = field(default_factory=list)


def read_tables() -> dict[str, dict]:
    """Read the paper's tables by key."""
    path = ROOT / 'configs' / 'paper_results.json'
    return json.loads(path.read_text())['tables']


def method_of(table: str, column: str) -> str | None:
    """Return the method's key in :data:`METHODS`; None for SAM, which we lack."""
    if column == 'AGVM':
        return f'agvm-{TABLE_OPTIMIZER[table]}'
    found = (name for name, method in METHODS.items() if column in method.columns)
    return next(found, None)


def config_metadata() -> dict[str, dict]:
    """Read the metadata of each config from the metafiles, by path."""
    return {
        model['Config']: model['Metadata']
        for path in sorted(ROOT.glob('configs/*/metafile.yml'))
        for model in yaml.safe_load(path.read_text())['Models']
    }


def training_command(
    config: str, metadata: dict | None, ranks: int, node_ranks: int
) -> str:
    """Return the command that trains a config on some ranks, on machines of node_ranks.

    It reduces the images per rank where the total batch size is not a multiple of the
    config's images per rank times the number of ranks. The digits have no metadata.
    """
    command = f'tools/dist_train.sh {config} {min(ranks, node_ranks)}'
    if ranks > node_ranks:
        nodes = ranks // node_ranks
        command = f'NNODES={nodes} NODE_RANK=0 MASTER_ADDR=node0 {command}'
    if metadata is None:
        return command
    on_each, rest = divmod(metadata['Total Batch Size'], ranks)
    images = metadata['Images per GPU']
    # Either no number of images fits these ranks, or that of the config does.
    if rest or on_each % images == 0:
        return command
    images = max(n for n in range(1, images) if on_each % n == 0)
    return f'{command} --cfg-options train_dataloader.batch_size={images}'


def find_config(table: str, row: dict, column: str, paths: list[str]) -> str | None:
    """Return the one of the configs' paths that is for a cell of a row, or None.

    Raises:
        LookupError: If several are.
    """
    folder, model = MODELS[row['model']]
    # SAM has no method here, and so no config.
    method = method_of(table, column)
    start = f'configs/{folder}/{model}'
    middle = f'_{method}_b{row["batch_size"]}_'
    if row['model'] == 'mask_rcnn':
        # The re-run had another length than the table, and has configs of its own.
        middle += '16e' if table == 'open_source_rerun' else '14e'
    found = [path for path in paths if path.startswith(start) and middle in path]
    if len(found) > 1:
        raise LookupError(f'{table}, {row["model"]}, {column}: {", ".join(found)}')
    return found[0] if found else None


def read_cells(data: str, ranks: int, node_ranks: int = NODE_RANKS) -> list[Cell]:
    """Return every cell with config and command: of the 'paper', or of the 'digits'.

    The digits train on one machine, whatever the number of ranks.

    Raises:
        ValueError: If the ranks do not fill their machines.
    """
    node_ranks = ranks if data == 'digits' else node_ranks
    if ranks > node_ranks and ranks % node_ranks:
        fewer = ranks - ranks % node_ranks
        raise ValueError(
            f'--ranks {ranks} does not fill machines of --node-ranks {node_ranks}; '
            f'use {fewer} or {fewer + node_ranks}, or name the ranks of a machine'
        )
    metadata = config_metadata()
    cells = _digits_cells() if data == 'digits' else paper_cells(list(metadata))
    for cell in cells:
        if cell.config:
            own = metadata.get(cell.config)
            cell.updates = own['Updates'] if own else DIGITS_UPDATES
            cell.command = training_command(cell.config, own, ranks, node_ranks)
    return cells


def paper_cells(paths: list[str]) -> list[Cell]:
    """Return every cell of the paper's tables, with its config of those at paths."""
    cells = []
    for key, table in read_tables().items():
        for row in table['rows']:
            statuses = row.get('status', table.get('status', 'exact'))
            if isinstance(statuses, str):
                statuses = [statuses] * len(table['columns'])
            known = zip(table['columns'], row['values'], statuses, strict=True)
            same = {name: row[name] for name in ('model', 'batch_size', 'metric')}
            for column, paper, status in known:
                config = find_config(key, row, column, paths)
                own = dict(column=column, paper=paper, status=status, config=config)
                cells.append(Cell(table=key, **same, **own))
    return cells


def _digits_cells() -> list[Cell]:
    configs = {}
    for path in sorted(ROOT.glob('configs/digits/*.py')):
        name = parse_config_name(path.stem)
        key = name.model.split('_')[0], name.method
        configs[key] = path.relative_to(ROOT).as_posix()
    return [
        Cell(
            table=DIGITS,
            model=model,
            batch_size=256,
            column=method.title,
            metric=metric,
            paper=None,
            status='digits',
            config=configs[model, key],
        )
        for model, metric in TWIN_METRICS.items()
        for key, method in METHODS.items()
        if (model, key) in configs
    ]


def work_dir(cell: Cell, root: Path) -> Path:
    """Return the default work folder of a cell's config."""
    return root / Path(cell.config).stem


def read_result(folder: str | Path, metric: str) -> float | str | None:
    """Return the last validation result in a work folder, in the paper's unit.

    It is 'NaN' if the last loss is not finite, None if there is no result.
    """
    key, factor = METRICS[metric]
    result = last_result(folder, key)
    if result is None:
        return None
    return 'NaN' if math.isnan(result) else round(result * factor, 1)


def fill_cell(cell: Cell, root: Path) -> None:
    """Read the result in a cell's work folder, and how its run differs."""
    folder = work_dir(cell, root)
    cell.found = read_result(folder, cell.metric)
    if cell.found is not None:
        updates = None if cell.found == 'NaN' else cell.updates
        cell.differences = differences(folder, ROOT / cell.config, updates)


def run_cell(cell: Cell, root: Path, run: Callable = subprocess.run) -> None:
    """Train a cell if it is not finished, and resume it from its checkpoint.

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


def to_markdown(cells: Sequence[Cell]) -> str:
    """Format cells as tables.

    In the paper's tables each cell reads 'paper / found', in that of the twins 'found';
    'differs' marks the result of a run that is not a whole one of the cell's config.
    Below each table are the commands of its cells, and what differs.
    """
    titles = {key: table['title'] for key, table in read_tables().items()}
    lines = []
    for key, title in (titles | {DIGITS: 'The embedded twins'}).items():
        of_table = [cell for cell in cells if cell.table == key]
        if not of_table:
            continue
        lines += [f'### {title}', '', *_table_lines(of_table), '']
        for cell in of_table:
            command = f'`{cell.command}`' if cell.command else 'no config'
            lines.append(
                f'- {cell.model}, batch {cell.batch_size}, {cell.column}: {command}'
                + (f" (paper's number: {cell.status})" if cell.paper else '')
            )
            shown = cell.differences[:SHOWN_DIFFERENCES]
            lines += [f'  - differs: {text}' for text in shown]
            if cell.differences[len(shown) :]:
                lines.append(f'  - and {len(cell.differences) - len(shown)} more')
        lines.append('')
    return '\n'.join(lines)


def _table_lines(cells: Sequence[Cell]) -> list[str]:
    columns = list(dict.fromkeys(cell.column for cell in cells))
    lines = [
        f'| model | metric | batch | {" | ".join(columns)} |',
        '|' + ' --- |' * (3 + len(columns)),
    ]
    rows: dict[tuple, dict[str, str]] = {}
    for cell in cells:
        numbers = [cell.found] if cell.table == DIGITS else [cell.paper, cell.found]
        key = (cell.model, cell.metric, cell.batch_size)
        text = ' / '.join('-' if n is None else str(n) for n in numbers)
        rows.setdefault(key, {})[cell.column] = text + DIFFERS * bool(cell.differences)
    return lines + [
        f'| {model} | {metric} | {batch} | '
        + ' | '.join(numbers.get(column, '') for column in columns)
        + ' |'
        for (model, metric, batch), numbers in rows.items()
    ]
