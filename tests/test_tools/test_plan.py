"""plan.py from the command line: text, messages and exit status."""

import subprocess
import sys
from pathlib import Path

import pytest
from logfiles import write_log
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
        *('memory', 'AGVM'),
    ]
    assert 'paramwise_options' not in done.stderr


def test_text_and_exit_status(capsys: pytest.CaptureFixture):
    assert run_script('plan.py', AGVM_512, '--gpus', 8) == 0
    assert '512 images = 8 GPU(s) x 16 images x 4 mic' in capsys.readouterr().out
    assert run_script('plan.py', AGVM_512, '--gpus', 7) == 1
    assert 'PROBLEM     total_batch_size=512 is not a' in capsys.readouterr().out
    several = ['--cfg-options', 'train_dataloader.batch_size=[4,16]']
    assert run_script('plan.py', AGVM_512, '--gpus', 8, *several) == 1
    message = 'PROBLEM     batch_size must be a whole number, got [4, 16]\n'
    assert message in capsys.readouterr().out
    nowhere = ['--cfg-options', 'train_dataloader.dataset.data_root=nowhere']
    assert run_script('plan.py', DIGITS, '--gpus', 2, *nowhere) == 1
    printed = capsys.readouterr().out
    assert printed.startswith('PROBLEM ') and 'give it by --images N' in printed
    assert run_script('plan.py', DIGITS, '--gpus', 2, '--images', 4096, *nowhere) == 0


def test_auto_scale_lr_is_that_of_train(capsys: pytest.CaptureFixture):
    options = ['train_cfg.type=LargeBatchTrainLoop', 'train_cfg.total_batch_size=256']
    stock = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    arguments = '--gpus', 8, '--auto-scale-lr', '--cfg-options', *options
    assert run_script('plan.py', stock, *arguments) == 0
    printed = capsys.readouterr().out
    assert ', 0.32 at ' in printed and 'warning' not in printed
    assert run_script('plan.py', AGVM_512, '--gpus', 8, '--auto-scale-lr') == 1
    assert 'needs the batch size' in capsys.readouterr().out


def test_number_below_one_is_rejected(capsys: pytest.CaptureFixture):
    assert run_script('plan.py', AGVM_512, '--gpus', 0) == 2
    assert 'argument --gpus: must be at least 1, got 0' in capsys.readouterr().err


def test_overrides_are_planned(capsys: pytest.CaptureFixture):
    options = ['default_hooks.agvm.begin=100']
    assert run_script('plan.py', AGVM_512, '--gpus', 8, '--cfg-options', *options) == 0
    printed = capsys.readouterr().out
    assert 'AGVM        from update 100,' in printed


def test_missing_config_suggests_the_nearest(capsys: pytest.CaptureFixture):
    missing = AGVM_512.replace('agvm-sgd', 'agvm-sdg')
    assert run_script('plan.py', missing, '--gpus', 8) == 1
    assert "Did you mean 'faster-rcnn_r50" in capsys.readouterr().out


def test_unregistered_loop_is_a_problem_without_quotes(capsys: pytest.CaptureFixture):
    options = ['train_cfg.type=LargeBatchTrainLop']
    assert run_script('plan.py', AGVM_512, '--gpus', 8, '--cfg-options', *options) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("PROBLEM     train_cfg.type='LargeBatchTrainLop' is not")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the work folder of a run of Faster R-CNN with noise scales."""
    scales = dict(backbone=1024.0, rpn_head=64.0, bbox_head=1024.0)
    values = {f'agvm/noise_scale_{name}': value for name, value in scales.items()}
    values |= {f'agvm/phi_{name}': 0.5 for name in (*scales, 'neck')}
    write_log(
        tmp_path / 'run',
        {'step': 20, 'lr': 0.1, 'agvm/noise_scale_all': 512.0} | values,
    )
    return tmp_path / 'run'


def test_log_of_a_run_adds_its_forecast(run: Path, capsys: pytest.CaptureFixture):
    arguments = '--gpus', 8, '--log', run, '--images-per-second', 1024
    assert run_script('plan.py', AGVM_512, *arguments) == 0
    labels = [line[:12].strip() for line in capsys.readouterr().out.splitlines()]
    assert labels == [
        *('batch', 'updates', 'precision', 'lr', *['module'] * 4, 'memory'),
        *('AGVM', *['noise scale'] * 5, 'saved', 'mu', 'time', '', '', 'warning'),
    ]


def test_hours_alone_need_no_noise_scales(capsys: pytest.CaptureFixture):
    arguments = '--gpus', 8, '--images-per-second', 1024
    assert run_script('plan.py', AGVM_512, *arguments) == 0
    # 230 updates in each of 16 epochs.
    hours = 16 * 230 * 512 / 1024 / 3600
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f'time        {hours:.3f} hours, {8 * hours:.2f} GPU-hours')


WRONG_SOURCES = [
    (['--log', 'nowhere'], 1, 'nowhere has no */vis_data/scalars.json'),
    (['--log', AGVM_512], 1, 'line 1 is not JSON'),
    (['--noise', AGVM_512], 1, 'is not a file of tools/noise_scale.py --json'),
    (['--log', 'a', '--noise', 'b'], 2, 'not allowed with argument --log'),
    (['--images-per-second', '0'], 2, 'must be more than 0, got 0.0'),
    (['--images-per-second', 'nan'], 2, 'must be more than 0, got nan'),
]


def test_wrong_source_of_a_forecast_is_rejected(subtests, capsys):
    for arguments, status, message in WRONG_SOURCES:
        with subtests.test(arguments=arguments, status=status):
            assert run_script('plan.py', AGVM_512, '--gpus', 8, *arguments) == status
            printed = capsys.readouterr()
            assert message in printed.out + printed.err


def test_log_of_another_model_is_a_problem(run: Path, capsys: pytest.CaptureFixture):
    assert run_script('plan.py', SWIN, '--gpus', 64, '--log', run) == 1
    printed = capsys.readouterr().out
    assert 'PROBLEM     the config trains the modules backbone, decode_head' in printed


def test_names_losses_that_depend_on_the_layout(capsys: pytest.CaptureFixture):
    retina = DIGITS.replace('faster-rcnn', 'retinanet')
    arguments = '--gpus', 2, '--images', 4096, '--images-per-gpu', 2, '--losses'
    assert run_script('plan.py', retina, *arguments) == 0
    assert (
        'losses      loss_cls, loss_bbox: depend on what else is in a micro-batch'
    ) in capsys.readouterr().out
    average = 'train_cfg.normalizers=average'
    ghm = 'model.bbox_head.loss_cls._delete_=True', 'model.bbox_head.loss_cls.type=GHMC'
    options = '--cfg-options', average, *ghm
    assert run_script('plan.py', retina, *arguments, *options) == 0
    *_, losses, warning = capsys.readouterr().out.splitlines()
    assert losses.endswith('normalizers of an image: their average over updates')
    assert warning.startswith(
        "warning     normalizers='average' does not reach loss_cls of RetinaNet: they"
    )
    stock = 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'
    assert run_script('plan.py', stock, '--gpus', 8, '--losses') == 0
    assert capsys.readouterr().out.endswith('losses      no difference found\n')
    weighted = DIGITS.replace('faster-rcnn', 'sem-fpn').replace('_fpn_agvm', '_agvm')
    # Weights for two of eleven classes, with which no loss can be computed.
    two = 'model.decode_head.loss_decode.class_weight=[1.0,2.0]'
    options = '--cfg-options', average, two
    assert run_script('plan.py', weighted, *arguments, *options) == 1
    assert 'PROBLEM     normalizers=' in capsys.readouterr().out
