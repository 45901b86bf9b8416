"""paper_tables.py from the command line."""

import json
from pathlib import Path

import pytest
from logfiles import write_log, write_whole_run
from scripts import ROOT, run_script

pytestmark = pytest.mark.evidence

SCRIPT = '../benchmarks/paper_tables.py'


def test_tables_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture):
    name = 'faster-rcnn_r50_fpn_agvm-sgd_b512_16e_coco'
    write_whole_run(
        tmp_path / name,
        ROOT / f'configs/faster_rcnn/{name}.py',
        {'coco/bbox_mAP': 0.123},
        updates=3680,
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
    assert cell['differences'] == [] and 'differs' not in printed


def test_result_of_another_run_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Such as a trial of two epochs at batch 4."""
    name = 'faster-rcnn_r50_fpn_agvm-sgd_b512_16e_coco'
    changes = {'train_cfg.total_batch_size': 4, 'train_cfg.max_epochs': 2}
    config = ROOT / f'configs/faster_rcnn/{name}.py'
    write_whole_run(
        tmp_path / name, config, {'coco/bbox_mAP': 0.0}, updates=12, changes=changes
    )
    run_script(SCRIPT, '--work-dirs', tmp_path, '--only', name)
    printed = capsys.readouterr().out
    assert '| faster_rcnn | bbox_mAP | 512 | 36.7 / 0.0 (differs) |' in printed
    assert '  - differs: 4 images in an update instead of 512' in printed
    assert '  - differs: train_cfg.max_epochs=2 instead of 16' in printed


def test_many_ranks_are_on_several_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    only = ['--work-dirs', tmp_path, '--only', 'faster-rcnn_r50_fpn_agvm-sgd_b512_16e']
    command = (
        'MASTER_ADDR=node0 tools/dist_train.sh '
        'configs/faster_rcnn/faster-rcnn_r50_fpn_agvm-sgd_b512_16e_coco.py'
    )
    for ranks, flags, nodes in ((32, [], 4), (32, ['--node-ranks', 4], 8)):
        run_script(SCRIPT, *only, '--ranks', ranks, *flags)
        printed = capsys.readouterr().out
        assert f'`NNODES={nodes} NODE_RANK=0 {command} {ranks // nodes}`' in printed
        assert 'Run a command on every machine' in printed
    run_script(SCRIPT, *only, '--ranks', 8)
    assert 'NNODES' not in capsys.readouterr().out
    with pytest.raises(ValueError, match='--ranks 12 does not fill .* use 8 or 16'):
        run_script(SCRIPT, *only, '--ranks', 12)


def test_digits_are_read_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture):
    name = 'sem-fpn_r18_w16_sgd_b256_10e_digits'
    write_log(tmp_path / name, {'mIoU': 41.26})
    arguments = ['--data', 'digits', '--no-run', '--only', 'sem-fpn']
    run_script(SCRIPT, *arguments, '--work-dirs', tmp_path)
    printed = capsys.readouterr().out
    assert '| model | metric | batch | SGD | SGD + AGVM |' in printed
    assert '| sem-fpn | mIoU | 256 | 41.3 (differs) | - |' in printed
    assert '  - differs: a log without a config' in printed
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
    assert (mask[lars], mask[lamb]) == ('15.5 (differs)', '')
    assert (faster[lars], faster[lamb]) == ('', '-')


def test_unknown_cells_are_rejected(tmp_path: Path):
    message = run_script(
        '../benchmarks/paper_tables.py', '--only', 'yolo', '--work-dirs', tmp_path
    )
    assert message == "no cell has a config with 'yolo' in its path"
