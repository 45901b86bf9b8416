"""The paper's tables: each cell with its config, command and result."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from logfiles import write_log
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
        assert words[:3] == ['tools/dist_train.sh', cell.config, str(ranks)]
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
