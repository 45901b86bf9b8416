"""The paper's tables: each cell with its config, command and result."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

import paper_tables  # noqa: E402

PAPER = json.loads((ROOT / 'configs/paper_results.json').read_text())['tables']


def test_every_number_of_the_paper_is_there_once():
    cells = paper_tables.read_cells('paper', 8)
    expected = [
        (key, row['model'], row['batch_size'], column, value)
        for key, table in PAPER.items()
        for row in table['rows']
        for column, value in zip(table['columns'], row['values'], strict=True)
    ]
    found = [(c.table, c.model, c.batch_size, c.column, c.paper) for c in cells]
    assert found == expected


def test_every_cell_but_sam_has_the_config_of_its_row():
    for cell in paper_tables.read_cells('paper', 8):
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


@pytest.mark.parametrize('ranks', [3, 8, 32, 768])
def test_commands_fit_their_ranks(ranks):
    for cell in paper_tables.read_cells('paper', ranks):
        if cell.config is None:
            continue
        words = cell.command.split()
        assert words[:3] == ['tools/dist_train.sh', cell.config, str(ranks)]
        cfg = Config.fromfile(ROOT / cell.config)
        own = images = cfg.train_dataloader.batch_size
        if words[3:]:
            option, _, value = words[4].partition('=')
            assert words[3] == '--cfg-options'
            assert option == 'train_dataloader.batch_size'
            images = int(value)
            assert images < own and cell.batch_size % (ranks * own)
        if cell.batch_size % ranks == 0:
            assert cell.batch_size % (ranks * images) == 0


def test_the_lengths_are_the_papers():
    metadata = paper_tables.config_metadata()
    with_iterations = 0
    for cell in paper_tables.read_cells('paper', 8):
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


def write_log(folder, *rows):
    path = folder / '20260101_000000' / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(json.dumps(row) for row in rows))


def test_results_are_read_from_the_logs(tmp_path):
    write_log(
        tmp_path / 'good',
        {'loss': 2.0, 'step': 1},
        {'coco/bbox_mAP': 0.1, 'step': 1},
        {'coco/bbox_mAP': 0.3671, 'step': 2},
    )
    write_log(tmp_path / 'diverged', {'loss': float('nan'), 'coco/bbox_mAP': 0.1})
    write_log(tmp_path / 'sem', {'mIoU': 37.25})
    read = paper_tables.read_result
    assert read(tmp_path / 'good', 'bbox_mAP') == 36.7
    assert read(tmp_path / 'diverged', 'bbox_mAP') == 'NaN'
    assert read(tmp_path / 'sem', 'mIoU') == 37.2
    assert read(tmp_path / 'sem', 'PQ') is None
    assert read(tmp_path / 'nothing', 'PQ') is None


def test_a_finished_cell_is_not_run_again_and_a_failed_one_is(tmp_path):
    cell = paper_tables.read_cells('digits', 2)[0]
    assert cell.config.startswith('configs/digits/faster-rcnn')
    calls = []

    def run(command, code, *, env, **_):
        assert env['PYTHON'] == sys.executable
        calls.append(command)
        return subprocess.CompletedProcess(command, code)

    with pytest.raises(RuntimeError, match='failed with 3'):
        paper_tables.run_cell(cell, tmp_path, lambda c, **k: run(c, 3, **k))
    for _ in range(2):
        paper_tables.run_cell(cell, tmp_path, lambda c, **k: run(c, 0, **k))
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


def test_the_tables_are_printed_and_written(tmp_path, capsys):
    write_log(
        tmp_path / 'faster-rcnn_r50_fpn_agvm-sgd_b512_16e_coco',
        {'coco/bbox_mAP': 0.123},
    )
    out = tmp_path / 'cells.json'
    paper_tables.main(['--work-dirs', str(tmp_path), '--json', str(out)])
    printed = capsys.readouterr().out
    assert (
        '| faster_rcnn | bbox_mAP | 512 | 35.3 / - | 35.3 / - | - / - | 36.7 / 12.3 |'
        in printed
    )
    assert '### RetinaNet R18, extreme batch sizes' in printed
    (cell,) = (
        cell
        for cell in json.loads(out.read_text())
        if cell['found'] == 12.3 and cell['table'] == 'sgd_four_tasks'
    )
    assert cell['paper'] == 36.7


def test_unknown_cells_are_refused(tmp_path):
    with pytest.raises(SystemExit, match='no cell has a config'):
        paper_tables.main(['--only', 'yolo', '--work-dirs', str(tmp_path)])
