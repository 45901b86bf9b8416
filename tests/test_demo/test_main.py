"""Progress lines and final table of the demo."""

import math
from pathlib import Path

import pytest

from agvm_mm.report.logs import Record
from demo import __main__ as demo

TRAIN = (
    '01/01 00:00:00 - mmengine - INFO - Epoch(train)  [3][ 4/16]  '
    'base_lr: 2.9797e-02 lr: 2.9797e-02  eta: 0:08:26  time: 2.0440  '
    'grad_norm: 1.4508  loss: 1.6566  loss_cls: 1.0  agvm/phi_neck: 0.2\n'
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


def record(step: int, phi: float, mu: float, noise: float, whole: float) -> Record:
    return {
        'step': step,
        'epoch': 1,
        'batch_size': 256,
        'agvm/phi_backbone': phi,
        'agvm/mu_backbone': mu,
        'agvm/noise_scale_backbone': noise,
        'agvm/noise_scale_all': whole,
    }


RECORDS = [
    record(2, 0.5, 1.0, 90.0, 80.0),
    {'step': 2, 'coco/bbox_mAP': 0.4, 'coco/bbox_mAP_50': 0.8, 'time': 1.0},
    record(3, 0.625, 1.5, 1536.2, 1024.0),
    {'step': 3, 'coco/bbox_mAP': 0.61, 'coco/bbox_mAP_50': 0.9, 'time': 1.0},
]


def test_table_has_the_last_values():
    table, score = demo.summarize(RECORDS, {'log': Path('a/log')})
    assert score == 0.61
    rows = [row.split() for row in table.splitlines()]
    assert ['bbox', 'mAP', '0.610', '(AP50', '0.900)'] in rows
    assert ['backbone', '0.625', '1.500', '1,536', 'images'] in rows
    assert ['whole', 'network', '1,024', 'images'] in rows
    assert ['log', 'a/log'] in rows
    # Updates go as 1 + N / B: 1 + 2 at batch 512 against 1 + 4 at 256. Images go as
    # 1 + B / N: 1.5 against 1.25.
    assert (
        'With 1,024 images (the noise scale) a gradient is half noise; doubling the '
        'batch of 256\nwould save 40% of the updates (50% at most) and take 20% more '
        'images.\n'
    ) in table


def test_table_says_what_is_not_resolved():
    unresolved = record(3, 0.625, 1.5, math.nan, math.nan)
    table, _ = demo.summarize([*RECORDS, unresolved], {})
    rows = [row.split() for row in table.splitlines()]
    assert ['backbone', '0.625', '1.500', 'not', 'resolved'] in rows
    assert ['whole', 'network', 'not', 'resolved'] in rows
    assert 'noise scale of the network is not resolved' in table
    assert 'would save' not in table


def test_detector_without_a_box_has_a_map_of_0():
    nothing = {'step': 4, 'time': 0.2, 'data_time': 0.1}
    table, score = demo.summarize([*RECORDS, nothing], {})
    assert score == 0
    assert 'bbox mAP    0.000   (AP50 0.000)' in table


def test_number_of_ranks_below_one_is_rejected(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        demo.parse_args(['--ranks', '0'])
    assert '--ranks must be at least 1, got 0' in capsys.readouterr().err
