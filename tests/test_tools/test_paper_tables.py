"""paper_tables.py from the command line."""

import json
from pathlib import Path

import pytest
from logfiles import write_log
from scripts import run_script

pytestmark = pytest.mark.evidence

SCRIPT = '../benchmarks/paper_tables.py'


def test_tables_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_log(
        tmp_path / 'faster-rcnn_r50_fpn_agvm-sgd_b512_16e_coco',
        {'coco/bbox_mAP': 0.123},
    )
    out = tmp_path / 'cells.json'
    run_script(SCRIPT, '--work-dirs', tmp_path, '--json', out)
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


def test_digits_are_read_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture):
    name = 'sem-fpn_r18_w16_sgd_b256_10e_digits'
    write_log(tmp_path / name, {'mIoU': 41.26})
    arguments = ['--data', 'digits', '--no-run', '--only', 'sem-fpn']
    run_script(SCRIPT, *arguments, '--work-dirs', tmp_path)
    printed = capsys.readouterr().out
    assert '| model | metric | batch | SGD | SGD + AGVM |' in printed
    assert '| sem-fpn | mIoU | 256 | 41.3 | - |' in printed
    assert f'tools/dist_train.sh configs/digits/{name}.py 2' in printed


def test_numbers_of_selected_cells_stay_in_their_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    name = 'mask-rcnn_r18_w16_fpn_lars_b256_10e_digits'
    write_log(tmp_path / name, {'coco/segm_mAP': 0.155})
    arguments = ['--data', 'digits', '--no-run', '--only', 'rcnn_r18']
    run_script(SCRIPT, *arguments, '--work-dirs', tmp_path)
    lines = capsys.readouterr().out.splitlines()[2:]
    columns, _, faster, mask = ([*map(str.strip, x.split('|'))] for x in lines[:4])
    lars, lamb = columns.index('LARS'), columns.index('LAMB')
    assert (mask[lars], mask[lamb]) == ('15.5', '')
    assert (faster[lars], faster[lamb]) == ('', '-')


def test_unknown_cells_are_rejected(tmp_path: Path):
    message = run_script(
        '../benchmarks/paper_tables.py', '--only', 'yolo', '--work-dirs', tmp_path
    )
    assert message == "no cell has a config with 'yolo' in its path"
