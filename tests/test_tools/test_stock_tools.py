"""The training tools of the toolboxes on their configs, with our lines added.

Of this repository only `custom_imports` is used. The settings on the command line make
the run small enough for a CPU, or let it run on one.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from agvm_mm.doctor import packages
from demo import write_digits

pytestmark = pytest.mark.evidence

CONFIG = """\
_base_ = '{base}'

custom_imports = dict(imports={imports})
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    accumulative_counts=2)
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=1))
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('data') / 'digits'
    write_digits(folder, num_train=4, num_val=2, progress=False)
    return folder


def train(
    command: Callable[[Path], list],
    base: str,
    work_dir: Path,
    settings: dict[str, Any],
    imports: Sequence[str] = ('agvm_mm',),
    **environment: str,
) -> list[dict[str, Any]]:
    """Run the training tool of a toolbox and return the records of its JSON log.

    Args:
        command: Returns the command that trains a config.
        base: A config of the toolbox.
        work_dir: Folder for all output.
        settings: Values for --cfg-options.
        imports: Values for custom_imports.
        environment: Further environment variables.
    """
    config = work_dir / 'ours.py'
    config.write_text(CONFIG.format(base=base, imports=list(imports)))
    options = [f'{key}={value}' for key, value in settings.items()]
    done = subprocess.run(
        [*command(config), '--work-dir', work_dir / 'run', '--cfg-options', *options],
        env=dict(
            os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', **environment
        ),
        cwd=work_dir,  # not the repository
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    (log,) = (work_dir / 'run').glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


def mim_train(toolbox: str) -> Callable[[Path], list]:
    """Return a function that returns the command `mim train PACKAGE CONFIG`.

    Args:
        toolbox: 'mmdet' or 'mmseg'. mim wants the name of the package, which may be
            that of a fork.
    """
    # Not one of the extras: its requirements would break the environment.
    pytest.importorskip('mim')
    package = packages()[toolbox].partition('==')[0]
    return lambda config: [sys.executable, '-m', 'mim', 'train', package, config]


def dist_train(config: Path) -> list:
    """Return the command for MMDetection's tools/dist_train.sh on two ranks."""
    (package,) = util.find_spec('mmdet').submodule_search_locations
    return ['bash', Path(package) / '.mim/tools/dist_train.sh', config, '2']


def small(data: Path, part: str, batch_size: int) -> dict[str, Any]:
    """Return the settings of a dataloader on the digits."""
    return {
        f'{part}_dataloader.batch_size': batch_size,
        f'{part}_dataloader.num_workers': 0,
        f'{part}_dataloader.persistent_workers': False,
        f'{part}_dataloader.dataset.data_root': f'{data}/',
    }


def check_log(rows: list[dict[str, Any]], modules: list[str]) -> None:
    """Check that each module was measured once, after the second micro-batch."""
    (measured,) = (row for row in rows if 'agvm/phi_backbone' in row)
    keys = {key for key in measured if key.startswith('agvm/')}
    # A noise scale that is not resolved is left out.
    assert {key for key in keys if 'noise_scale' not in key} == {
        f'agvm/{kind}_{module}' for kind in ('phi', 'mu') for module in modules
    }
    assert all(0 < measured[f'agvm/phi_{module}'] < 2 for module in modules)


def detection_settings(data: Path) -> dict[str, Any]:
    """Return the settings of Faster R-CNN on the digits, two images at a time."""
    settings = {
        'model.backbone.init_cfg': None,  # would be downloaded
        'model.roi_head.bbox_head.num_classes': 10,
        'model.train_cfg.rcnn.sampler.num': 32,
        'model.test_cfg.rcnn.score_thr': 0,  # an untrained network has low scores
        'train_cfg.max_epochs': 1,
        'default_hooks.logger.interval': 1,
        'default_hooks.checkpoint.interval': -1,
        'default_hooks.checkpoint.save_last': False,
        'train_dataloader.dataset.pipeline.2.scale': '(96,96)',
        'val_dataloader.dataset.pipeline.1.scale': '(96,96)',
    }
    for part, folder in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        file = f'annotations/instances_{folder}.json'
        settings |= small(data, part, 2) | {
            f'{part}_dataloader.dataset.ann_file': file,
            f'{part}_dataloader.dataset.data_prefix.img': f'{folder}/',
            f'{part}_dataloader.dataset.type': 'DigitsDetDataset',
        }
        if part != 'train':
            settings[f'{part}_evaluator.ann_file'] = data / file
    return settings


DETECTOR = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
# The second registers the data set.
IMPORTS = ['agvm_mm', 'demo.detection']


def test_mim_train_mmdet(data: Path, tmp_path: Path):
    settings = detection_settings(data)
    rows = train(mim_train('mmdet'), DETECTOR, tmp_path, settings, IMPORTS)
    check_log(rows, ['backbone', 'neck', 'rpn_head', 'bbox_head'])
    assert 'coco/bbox_mAP' in rows[-1]


def test_dist_train_of_mmdetection(data: Path, tmp_path: Path):
    """Train on two ranks, whose gradients are compared.

    The script is for GPUs: here MMEngine uses gloo, and the only call that needs CUDA
    does nothing.
    """
    settings = detection_settings(data) | {
        'train_dataloader.batch_size': 1,
        'env_cfg.dist_cfg.backend': 'gloo',
        'model_wrapper_cfg.type': 'MMDistributedDataParallel',
        'model_wrapper_cfg.device_ids': None,
        'model_wrapper_cfg.broadcast_buffers': False,
    }
    stand_in = tmp_path / 'site'
    stand_in.mkdir()
    (stand_in / 'sitecustomize.py').write_text(
        'import torch\ntorch.cuda.set_device = lambda device: None\n'
    )
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    rows = train(
        dist_train,
        DETECTOR,
        tmp_path,
        settings,
        IMPORTS,
        PYTHONPATH=str(stand_in),
        PATH=path,
        PORT=str(port),
    )
    check_log(rows, ['backbone', 'neck', 'rpn_head', 'bbox_head'])
    assert 'coco/bbox_mAP' in rows[-1]


def test_mim_train_mmsegmentation(data: Path, tmp_path: Path):
    size = '(96,96)'
    settings = {
        'model.pretrained': None,  # would be downloaded
        'model.data_preprocessor.size': size,
        'train_cfg.max_iters': 2,
        'train_cfg.val_interval': 2,
        'default_hooks.logger.interval': 1,
        'default_hooks.checkpoint.interval': -1,
        'default_hooks.checkpoint.save_last': False,
        'train_dataloader.dataset.pipeline.2.scale': size,
        'train_dataloader.dataset.pipeline.3.crop_size': size,
        'val_dataloader.dataset.pipeline.1.scale': size,
    }
    for part, folder in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        dataset = f'{part}_dataloader.dataset'
        settings |= small(data, part, 2 if part == 'train' else 1) | {
            f'{dataset}.img_suffix': '.png',
            f'{dataset}.data_prefix.img_path': f'{folder}/',
            f'{dataset}.data_prefix.seg_map_path': f'annotations/semantic_{folder}/',
        }
    # By its path: onedl-mmengine does not find mmseg:: without this package.
    configs = Path(util.find_spec('mmseg').origin).parent / '.mim/configs'
    base = configs / 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'
    rows = train(mim_train('mmseg'), str(base), tmp_path, settings)
    check_log(rows, ['backbone', 'neck', 'decode_head'])
    assert 'mIoU' in rows[-1]
