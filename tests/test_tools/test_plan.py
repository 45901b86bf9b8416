"""plan.py from the command line: text, messages and exit status."""

import subprocess
import sys
from pathlib import Path

import pytest
from scripts import run_script

ROOT = Path(__file__).parents[2]
AGVM_512 = 'configs/faster_rcnn/faster-rcnn_r50_fpn_agvm-sgd_b512_16e_coco.py'
SWIN = 'configs/upernet/upernet_swin-t_agvm-adamw_b1024_5k_ade20k-512x512.py'
DIGITS = 'configs/digits/faster-rcnn_r18_w16_fpn_agvm-sgd_b256_10e_digits.py'


def test_swin_prints_its_block_and_nothing_else():
    """MMEngine would log each option of each parameter, hundreds of lines."""
    done = subprocess.run(
        [sys.executable, 'tools/plan.py', SWIN, '--gpus', '64'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    labels = [line[:12].strip() for line in done.stdout.splitlines()]
    assert labels == [
        *('batch', 'updates', 'precision', 'lr', 'module', 'module', 'module'),
        *('memory', 'traffic', '', 'AGVM', ''),
    ]
    assert 'paramwise_options' not in done.stderr


def test_text_and_exit_status(capsys: pytest.CaptureFixture):
    assert run_script('plan.py', AGVM_512, '--gpus', 8) == 0
    assert '512 images = 8 GPU(s) x 16 images x 4 mic' in capsys.readouterr().out
    assert run_script('plan.py', AGVM_512, '--gpus', 7) == 1
    assert 'PROBLEM     total_batch_size=512 is not a' in capsys.readouterr().out
    assert run_script('plan.py', DIGITS, '--gpus', 2) == 1
    printed = capsys.readouterr().out
    assert printed.startswith('PROBLEM ') and 'give it by --images N' in printed
    assert run_script('plan.py', DIGITS, '--gpus', 2, '--images', 4096) == 0


def test_number_below_one_is_rejected(capsys: pytest.CaptureFixture):
    assert run_script('plan.py', AGVM_512, '--gpus', 0) == 2
    assert '--gpus must be at least 1' in capsys.readouterr().err


def test_overrides_are_planned(capsys: pytest.CaptureFixture):
    options = ['default_hooks.agvm.begin=100', 'optim_wrapper.momentum=0']
    assert run_script('plan.py', AGVM_512, '--gpus', 8, '--cfg-options', *options) == 0
    printed = capsys.readouterr().out
    assert 'AGVM        from update 100,' in printed
    assert 'half of its way in 1 measurement(s)' in printed


def test_missing_config_suggests_the_nearest(capsys: pytest.CaptureFixture):
    missing = AGVM_512.replace('agvm-sgd', 'agvm-sdg')
    assert run_script('plan.py', missing, '--gpus', 8) == 1
    assert "Did you mean 'faster-rcnn_r50" in capsys.readouterr().out


def test_unregistered_loop_is_a_problem_without_quotes(capsys: pytest.CaptureFixture):
    options = ['train_cfg.type=LargeBatchTrainLop']
    assert run_script('plan.py', AGVM_512, '--gpus', 8, '--cfg-options', *options) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("PROBLEM     train_cfg.type='LargeBatchTrainLop' is not")
