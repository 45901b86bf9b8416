"""noise_scale.py from the command line, on the digits."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from scripts import ROOT, run_script
from zoo import load

from demo import pretrain_backbone, write_digits

SEGMENTER = 'digits/sem-fpn_r18_w16_agvm-sgd_b256_10e_digits'
PLAIN = 'digits/faster-rcnn_r18_w16_fpn_adamw_b256_10e_digits'
LAMB = 'digits/faster-rcnn_r18_w16_fpn_lamb_b256_10e_digits'
SCRIPT = 'noise_scale.py'


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('data') / 'digits'
    write_digits(folder, num_train=40, num_val=4, progress=False)
    pretrain_backbone(folder, num_patches=64, epochs=1, progress=False)
    return folder


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of random models, by leaf."""
    files = {}
    for leaf in (SEGMENTER, PLAIN):
        cfg = copy.deepcopy(load(leaf))
        init_default_scope(cfg.default_scope)
        torch.manual_seed(0)
        files[leaf] = tmp_path_factory.mktemp('weights') / f'{Path(leaf).name}.pth'
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), files[leaf])
    return files


def measure(leaf: str, checkpoint: object, data: Path, *more: object) -> int | str:
    """Run the tool on few images."""
    config = f'configs/{leaf}.py'
    return run_script(SCRIPT, config, checkpoint, *more, *options(data))


def options(data: Path) -> list[str]:
    settings: dict[str, Any] = {
        'train_dataloader.dataset.data_root': f'{data}/',
        'train_dataloader.batch_size': 4,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
    }
    return ['--cfg-options', *(f'{key}={value}' for key, value in settings.items())]


def test_segmenter_prints_draws_and_writes(
    data: Path, checkpoints: dict, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out, result = tmp_path / 'new' / 'noise.png', tmp_path / 'json' / 'noise.json'
    flags = ['--images', 39, '--out', out, '--json', result]
    assert measure(SEGMENTER, checkpoints[SEGMENTER], data, *flags) == 0
    printed = capsys.readouterr().out
    assert '--images 39: rounded down to 36, whole blocks of 1 x 4 images' in printed
    assert '36 images in replicas of 4, 9 blocks; measured: gradient\n' in printed
    for batch, how in (('32', 'm'), ('64', 'p'), ('10,240', 'p')):
        assert len(re.findall(rf'^{batch} +{how} ', printed, re.M)) == 2
    assert out.read_bytes().startswith(b'\x89PNG')
    found = json.loads(result.read_text())
    assert (found['version'], found['images'], found['anchor']) == (1, 36, 'backbone')
    assert found['images_per_replica'] == 4
    assert set(found['modules']) == {'backbone', 'neck', 'decode_head', 'all'}
    total = found['modules'].pop('all')
    assert total['noise'] == pytest.approx(
        sum(each['noise'] for each in found['modules'].values())
    )
    batches = {row['batch']: row for row in found['batches']}
    assert [b for b in batches if batches[b]['measured']] == [8, 16, 32]
    assert 0 < batches[32]['phi']['backbone']['value'] < 2


def test_two_ranks_measure_together(data: Path, checkpoints: dict, tmp_path: Path):
    result = tmp_path / 'noise.json'
    environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    environment['PYTHONPATH'] = f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    script = ['tools/noise_scale.py', f'configs/{SEGMENTER}.py']
    flags = ['--launcher', 'pytorch', '--images', '32', '--json', result]
    done = subprocess.run(
        [sys.executable, *launch, *script, checkpoints[SEGMENTER], *flags]
        + options(data),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('32 images in replicas of 4, 8 blocks') == 1
    assert json.loads(result.read_text())['blocks'] == 8


def test_adamw_without_its_state_measures_the_plain_gradient_and_says_so(
    data: Path, checkpoints: dict, tmp_path: Path, capsys: pytest.CaptureFixture
):
    result = tmp_path / 'noise.json'
    flags = ['--images', 8, '--json', result]
    assert measure(PLAIN, checkpoints[PLAIN], data, *flags) == 0
    printed = capsys.readouterr().out
    assert 'measured: gradient\nNOTE  The checkpoint has no optimizer state' in printed
    found = json.loads(result.read_text())
    assert found['gradient'] == 'gradient'
    assert 'no optimizer state' in found['notes'][0]
    assert found['modules']['all']['noise_scale'] is None
    assert measure(LAMB, checkpoints[PLAIN], data, '--images', 8) == 0
    assert 'NOTE  LAMB' in capsys.readouterr().out.replace('Lamb', 'LAMB')


def test_adamw_with_its_state_measures_what_it_steps_along(
    data: Path, checkpoints: dict, tmp_path: Path, capsys: pytest.CaptureFixture
):
    cfg = copy.deepcopy(load(PLAIN))
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    saved = torch.load(checkpoints[PLAIN])
    model.load_state_dict(saved['state_dict'])
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper.copy())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    wrapper.optimizer.step()
    noises = []
    for state in ({}, dict(optimizer=wrapper.state_dict())):
        torch.save(saved | state, tmp_path / 'weights.pth')
        flags = ['--images', 8, '--json', tmp_path / 'noise.json']
        assert measure(PLAIN, tmp_path / 'weights.pth', data, *flags) == 0
        found = json.loads((tmp_path / 'noise.json').read_text())
        noises.append(found['modules']['backbone']['noise'])
    assert 'measured: gradient / (sqrt(v) + eps)\n' in capsys.readouterr().out
    assert found['gradient'] == 'gradient / (sqrt(v) + eps)' and not found['notes']
    # v is 0.001 * 1000^2 everywhere.
    assert noises[1] == pytest.approx(noises[0] / 1000, rel=1e-3)


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--images', 7], '--images 7 make 1 replica(s) of 4 images, and 1 rank(s)'),
        (['--images', 44], '--images 44, but the training set has 40 images'),
        (['--images', 0], 'argument --images: must be at least 1, got 0'),
        (['--out', 'a.png', 'b.pmg'], '--out b.pmg: the suffix must be one of '),
    ],
)
def test_wrong_flags_are_refused_before_the_work(
    flags: list,
    message: str,
    data: Path,
    checkpoints: dict,
    capsys: pytest.CaptureFixture,
):
    images = [] if '--images' in flags else ['--images', 8]
    status = measure(SEGMENTER, checkpoints[SEGMENTER], data, *flags, *images)
    assert status in (1, 2)
    assert message in capsys.readouterr().err


def test_normalizers_of_the_config_are_used(
    data: Path, checkpoints: dict, capsys: pytest.CaptureFixture
):
    note = "NOTE  train_cfg.normalizers='average': the losses of all replicas"
    loss = 'model.decode_head.loss_decode.'
    own = loss + 'avg_non_ignore=True', loss + 'class_weight=None'
    # Faster R-CNN has no normalizers to replace.
    cases = ((SEGMENTER, 'micro_batch', *own), (SEGMENTER, 'average', *own))
    for name, mode, *more in (*cases, (PLAIN, 'average')):
        arguments = f'configs/{name}.py', checkpoints[name], '--images', 8
        settings = (f'train_cfg.normalizers={mode}', *more)
        assert run_script(SCRIPT, *arguments, *options(data), *settings) == 0
        printed = capsys.readouterr().out
        assert (note in printed) == (name == SEGMENTER and mode == 'average')
    wrong = 'train_cfg.normalizers=averag'
    assert run_script(SCRIPT, *arguments, *options(data), wrong) == 1
    assert "normalizers must be one of 'micro_batch'" in capsys.readouterr().err


def test_anchor_is_that_of_the_config(
    data: Path, checkpoints: dict, capsys: pytest.CaptureFixture
):
    arguments = f'configs/{SEGMENTER}.py', checkpoints[SEGMENTER], '--images', 8
    wrong = 'optim_wrapper.anchor=bakbone'
    assert run_script(SCRIPT, *arguments, *options(data), wrong) == 1
    assert "Did you mean 'backbone'?" in capsys.readouterr().err


def test_wrong_checkpoints_are_refused(
    data: Path, checkpoints: dict, tmp_path: Path, capsys: pytest.CaptureFixture
):
    flags = ['--images', 8]
    assert measure(PLAIN, checkpoints[SEGMENTER], data, *flags) == 1
    printed = capsys.readouterr().err
    assert 'is not a checkpoint of this model: Missing key(s) in state' in printed
    assert '"rpn_head.rpn_conv.weight"' in printed and 'Unexpected key(s)' in printed

    saved = torch.load(checkpoints[PLAIN])
    saved['state_dict']['rpn_head.rpn_cls.weight'] = torch.zeros(2, 2)
    torch.save(saved, tmp_path / 'shape.pth')
    assert measure(PLAIN, tmp_path / 'shape.pth', data, *flags) == 1
    assert 'this model: size mismatch for rpn_head' in capsys.readouterr().err
    saved = torch.load(checkpoints[PLAIN])
    saved['optimizer'] = dict(state={0: dict(momentum_buffer=None)}, param_groups=[])
    torch.save(saved, tmp_path / 'sgd.pth')
    assert measure(PLAIN, tmp_path / 'sgd.pth', data, *flags) == 1
    assert 'state of another optimizer than AdamW' in capsys.readouterr().err
    assert measure(PLAIN, tmp_path / 'none.pth', data, *flags) == 1
    assert 'none.pth' in capsys.readouterr().err


def test_config_of_a_toolbox_is_found_by_name(capsys: pytest.CaptureFixture):
    name = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    assert run_script(SCRIPT, name, 'none.pth') == 1
    assert 'none.pth' in capsys.readouterr().err
    wrong = name.replace('1x', '1y')
    assert run_script(SCRIPT, wrong, 'none.pth') == 1
    assert "Did you mean 'retinanet_r50" in capsys.readouterr().err
    assert run_script(SCRIPT, name.replace('mmdet', 'mmdett'), 'none.pth') == 1
    assert 'mmdett is not installed' in capsys.readouterr().err
