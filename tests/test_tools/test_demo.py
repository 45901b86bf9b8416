"""Progress lines and final table of the demo."""

from pathlib import Path

import pytest
from scripts import load_script

demo = load_script('demo.py')

TRAIN = (
    '01/01 00:00:00 - mmengine - INFO - Epoch(train)  [3][ 4/16]  '
    'base_lr: 2.9797e-02 lr: 2.9797e-02  eta: 0:08:26  time: 2.0440  '
    'grad_norm: 1.4508  loss: 1.6566  loss_cls: 1.0  agvm/phi/neck: 0.2\n'
)
VAL = (
    '01/01 00:00:00 - mmengine - INFO - Epoch(val) [3][8/8]    '
    'coco/bbox_mAP: 0.1290  coco/bbox_mAP_50: 0.3610  coco/bbox_mAP_m: -1.0000\n'
)


def test_progress_is_shortened():
    assert demo.shorten(TRAIN) == (
        'epoch  3  update  4/16  lr 0.03  loss 1.657  (0:08:26 to go)'
    )
    assert demo.shorten(VAL) == 'epoch  3  validation: bbox mAP 0.1290'
    assert demo.shorten('Epoch(val)  [9][4/8]    eta: 0:00:01  time: 0.2') is None
    assert demo.shorten('Done (t=0.01s)') is None


def test_table_has_the_last_values():
    records = [
        {'step': 2, 'agvm/phi/backbone': 0.5, 'agvm/mu/backbone': 1.0},
        {'step': 2, 'coco/bbox_mAP': 0.4, 'coco/bbox_mAP_50': 0.8},
        {'step': 3, 'agvm/phi/backbone': 0.625, 'agvm/mu/backbone': 1.5},
        {'step': 3, 'coco/bbox_mAP': 0.61, 'coco/bbox_mAP_50': 0.9},
    ]
    table, score = demo.summarize(records, {'log': Path('a/log')})
    assert score == 0.61
    rows = [row.split() for row in table.splitlines()]
    assert ['bbox', 'mAP', '0.610', '(AP50', '0.900)'] in rows
    assert ['backbone', '0.625', '1.500'] in rows
    assert ['log', 'a/log'] in rows


def test_number_of_ranks_below_one_is_rejected(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        demo.parse_args(['--ranks', '0'])
    assert '--ranks must be at least 1, got 0' in capsys.readouterr().err
