"""The paper's tables: each cell with its config, command and result."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from logfiles import write_log, write_whole_run
from twins import METRICS, TWINS
from zoo import load

from benchmarks.paper import tables as paper

pytestmark = pytest.mark.evidence

ROOT = Path(__file__).parents[2]
PAPER = json.loads((ROOT / 'configs/paper_results.json').read_text())['tables']


def test_every_number_of_the_paper_is_in_one_cell():
    cells = paper.read_cells('paper', 8)
    expected = [
        (key, row['model'], row['batch_size'], column, value)
        for key, table in PAPER.items()
        for row in table['rows']
        for column, value in zip(table['columns'], row['values'], strict=True)
    ]
    found = [(c.table, c.model, c.batch_size, c.column, c.paper) for c in cells]
    assert found == expected


def test_every_cell_except_sam_has_the_config_of_its_row():
    for cell in paper.read_cells('paper', 8):
        if cell.column == 'SAM' or (cell.model, cell.column) in [
            # Only AGVM's billion-parameter config is shipped.
            ('uninet_g', 'AdamW'),
            ('uninet_g', 'PMD-LAMB'),
        ]:
            assert cell.config is None
            continue
        if cell.paper is None and cell.config is None:
            continue
        if cell.model == 'uninet_g' and cell.batch_size == 32:
            assert cell.config is None
            continue
        assert (ROOT / cell.config).is_file(), cell
        assert f'_b{cell.batch_size}_' in cell.config
        assert ('agvm' in cell.config) == (cell.column == 'AGVM')
        assert cell.command == f'tools/dist_train.sh {cell.config} 8'


def test_every_twin_is_in_one_cell_with_its_metric():
    cells = [cell for cell in paper.read_cells('digits', 2) if cell.config]
    found = {Path(cell.config).stem: cell for cell in cells}
    assert len(cells) == len(found)
    assert {f'digits/{name}' for name in found} == set(TWINS)
    for name, cell in found.items():
        parts = paper.parse_config_name(name)
        assert cell.column == paper.METHODS[parts.method].title
        assert paper.METRICS[cell.metric][0] == METRICS[parts.model]
        assert cell.command == f'tools/dist_train.sh {cell.config} 2'


@pytest.mark.parametrize('ranks', [3, 8, 32, 768])
def test_commands_fit_the_number_of_ranks(ranks: int):
    for cell in paper.read_cells('paper', ranks):
        if cell.config is None:
            continue
        words = cell.command.split()
        if ranks > 8:
            nodes = [f'NNODES={ranks // 8}', 'NODE_RANK=0', 'MASTER_ADDR=node0']
            assert words[:3] == nodes
            words = words[3:]
        assert words[:3] == ['tools/dist_train.sh', cell.config, str(min(ranks, 8))]
        leaf = cell.config.removeprefix('configs/').removesuffix('.py')
        default = images = load(leaf).train_dataloader.batch_size
        if words[3:]:
            option, _, value = words[4].partition('=')
            assert words[3] == '--cfg-options'
            assert option == 'train_dataloader.batch_size'
            images = int(value)
            assert images < default and cell.batch_size % (ranks * default)
        if cell.batch_size % ranks == 0:
            assert cell.batch_size % (ranks * images) == 0


def test_configs_have_the_lengths_of_the_paper():
    metadata = paper.config_metadata()
    with_iterations = 0
    for cell in paper.read_cells('paper', 8):
        if cell.table == 'open_source_rerun':
            assert cell.config is None or '_16e_' in cell.config
            continue
        (row,) = (
            r
            for r in PAPER[cell.table]['rows']
            if (r['model'], r['batch_size']) == (cell.model, cell.batch_size)
        )
        if cell.config and 'iterations' in row and cell.model != 'uninet_g':
            with_iterations += 1
            assert metadata[cell.config]['Updates'] == pytest.approx(
                row['iterations'], rel=0.01
            )
    assert with_iterations > 30


def test_results_are_read_in_the_unit_of_the_paper(tmp_path: Path):
    write_log(
        tmp_path / 'good',
        {'loss': 2.0, 'step': 1},
        {'coco/bbox_mAP': 0.1, 'step': 1},
        {'coco/bbox_mAP': 0.3671, 'step': 2},
    )
    write_log(tmp_path / 'diverged', {'loss': float('nan'), 'coco/bbox_mAP': 0.1})
    write_log(tmp_path / 'sem', {'mIoU': 37.25})
    assert paper.read_result(tmp_path / 'good', 'bbox_mAP') == 36.7
    assert paper.read_result(tmp_path / 'diverged', 'bbox_mAP') == 'NaN'
    assert paper.read_result(tmp_path / 'sem', 'mIoU') == 37.2
    assert paper.read_result(tmp_path / 'sem', 'PQ') is None
    assert paper.read_result(tmp_path / 'nothing', 'PQ') is None


DETECTOR = 'faster-rcnn_r50_fpn_agvm-sgd_b512_16e_coco'
SEGMENTER = 'sem-fpn_r50_sgd_b512_10k_ade20k-512x512'
TWIN = 'sem-fpn_r18_w16_sgd_b256_10e_digits'


def filled(config: str, folder: Path, **run: Any) -> paper.Cell:
    """Write the run of a config into a folder; return its cell, with the result."""
    data = 'digits' if config == TWIN else 'paper'
    cell = next(
        cell
        for cell in paper.read_cells(data, 8)
        if cell.config and Path(cell.config).stem == config
    )
    metric = {paper.METRICS[cell.metric][0]: 0.3}
    settings = dict(updates=cell.updates) | run
    write_whole_run(folder / config, ROOT / cell.config, metric, **settings)
    paper.fill_cell(cell, folder)
    return cell


@pytest.mark.parametrize(
    'name, updates', [(DETECTOR, 3680), (SEGMENTER, 10000), (TWIN, 160)]
)
def test_whole_run_of_a_config_does_not_differ(tmp_path: Path, name: str, updates: int):
    # Where data are, and how a run is divided and logged, is not part of it.
    changes = {
        'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': 7,
        'train_dataloader.dataset.data_root': '/elsewhere/',
        'default_hooks.logger.interval': 20,
        'default_hooks.preemption': dict(type='PreemptionHook'),
        'randomness': dict(seed=1),
    }
    cell = filled(name, tmp_path, changes=changes)
    assert (cell.updates, cell.differences) == (updates, [])
    assert cell.found is not None


@pytest.mark.parametrize(
    'name, run, expected',
    [
        (
            DETECTOR,
            dict(changes={'optim_wrapper.optimizer.lr': 0.01}),
            ['optim_wrapper.optimizer.lr=0.01 instead of 0.38'],
        ),
        (
            DETECTOR,
            dict(changes={'default_hooks.agvm.interval': 1}),
            ['default_hooks.agvm.interval=1 instead of 10'],
        ),
        (
            DETECTOR,
            dict(changes={'train_dataloader.dataset.ann_file': 'annotations/few.json'}),
            [
                "train_dataloader.dataset.ann_file='few.json' instead of "
                "'instances_train2017.json'"
            ],
        ),
        (
            DETECTOR,
            dict(changes={'load_from': 'trained.pth'}),
            ["load_from='trained.pth' instead of None"],
        ),
        (DETECTOR, dict(changes={'load_from': 'epoch_3.pth', 'resume': True}), []),
        (
            DETECTOR,
            dict(batch_size=64),
            ['64 images in an update instead of 512'],
        ),
        (DETECTOR, dict(updates=200), ['200 updates in the log instead of 3,680']),
        (TWIN, dict(updates=161), ['161 updates in the log instead of 160']),
        (
            SEGMENTER,
            dict(updates=4000),
            [
                '4,000 updates in the log instead of 10,000',
                'validated last after 4,000 of 10,000 iters',
            ],
        ),
        (DETECTOR, dict(updates=200, loss=float('nan')), []),  # diverged
    ],
)
def test_other_or_interrupted_run_differs(
    tmp_path: Path, name: str, run: dict, expected: list[str]
):
    assert filled(name, tmp_path, **run).differences == expected


def test_run_is_what_the_last_log_continues(tmp_path: Path):
    """A trial before it does not count, the part before an interruption does."""
    trial = {'train_cfg.total_batch_size': 4}
    first = filled(TWIN, tmp_path, updates=9, changes=trial)
    assert '4 images in an update instead of 256' in first.differences
    parts = dict(b=(1, 80), c=(82, 160))
    for name, (start, end) in parts.items():
        cell = filled(TWIN, tmp_path, first=start, updates=end, name=name)
        assert bool(cell.differences) == (name == 'b')
    changes = {'optim_wrapper.optimizer.lr': 1.0}
    cell = filled(TWIN, tmp_path, first=120, name='d', changes=changes)
    assert cell.differences == ['optim_wrapper.optimizer.lr=1.0 instead of 0.2']


def test_result_of_an_earlier_run_is_not_that_of_one_started_again(tmp_path: Path):
    train = [{'lr': 0.1, 'loss': 1.0, 'step': step} for step in (2, 4)]
    write_log(tmp_path, *train, {'mIoU': 40.0, 'step': 1}, name='a')
    assert paper.read_result(tmp_path, 'mIoU') == 40.0
    write_log(tmp_path, *train, name='b')
    assert paper.read_result(tmp_path, 'mIoU') is None


def test_failed_cell_runs_again_and_finished_cell_does_not(tmp_path: Path):
    cell = paper.read_cells('digits', 2)[0]
    assert cell.config.startswith('configs/digits/faster-rcnn')
    calls = []

    def run(command: list[str], code: int, **kwargs) -> subprocess.CompletedProcess:
        assert kwargs['cwd'] == ROOT
        assert kwargs['env']['PYTHON'] == sys.executable
        calls.append(command)
        return subprocess.CompletedProcess(command, code)

    with pytest.raises(RuntimeError, match='failed with 3'):
        paper.run_cell(cell, tmp_path, lambda c, **k: run(c, 3, **k))
    for _ in range(2):
        paper.run_cell(cell, tmp_path, lambda c, **k: run(c, 0, **k))
    assert len(calls) == 2
    folder = tmp_path / Path(cell.config).stem
    assert calls[0] == [
        'tools/dist_train.sh',
        cell.config,
        '2',
        '--work-dir',
        str(folder),
        '--resume',
    ]


@pytest.mark.parametrize(
    'name, parts',
    [
        (
            'faster-rcnn_r50_fpn_agvm-sgd_b512_16e_coco',
            ('faster-rcnn_r50_fpn', 'agvm-sgd', 512, '16e', 'coco'),
        ),
        (
            'upernet_swin-t_pmd-lamb_b10240_500iters_ade20k-512x512',
            ('upernet_swin-t', 'pmd-lamb', 10240, '500iters', 'ade20k-512x512'),
        ),
    ],
)
def test_config_name_is_parsed_and_formatted(name: str, parts: tuple):
    parsed = paper.parse_config_name(name)
    assert (
        parsed.model,
        parsed.method,
        parsed.batch,
        parsed.length,
        parsed.dataset,
    ) == parts
    assert str(parsed) == name


@pytest.mark.parametrize(
    'name', ['my run', 'faster-rcnn_r50_fpn_adam_b512_16e_coco', 'x_sgd_b_1e_coco']
)
def test_other_names_are_not_config_names(name: str):
    assert paper.parse_config_name(name) is None


def test_every_config_name_is_parsed():
    for path in (ROOT / 'configs').glob('[!_]*/*.py'):
        name = paper.parse_config_name(path.stem)
        assert name is not None and str(name) == path.stem
