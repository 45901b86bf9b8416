"""The toolboxes' own training tools on their own configs, with our lines added.

Nothing of this repository but what `custom_imports` brings in. The settings on the
command line only make the run small enough for a CPU, or let it run on one.
"""

import json
import os
import socket
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from agvm_mm.digits import write_digits

CONFIG = """\
_base_ = '{base}'

custom_imports = dict(imports={imports})
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    constructor='AGVMOptimWrapperConstructor',
    accumulative_counts=2)
custom_hooks = [dict(type='VarianceSyncHook', interval=1)]
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'digits'
    write_digits(folder, num_train=4, num_val=2, progress=False)
    return folder


def train(command, base, work_dir, settings, imports=('agvm_mm',), **environment):
    """Run a toolbox's training; the rows of the JSON log.

    Args:
        command (function): Makes the command of the path of a config.
        base (str): A config of the toolbox.
        work_dir (Path): Where everything is written.
        settings (dict): Of --cfg-options.
        imports (Sequence[str]): Of custom_imports.
        environment (dict): Further environment variables.
    """
    config = work_dir / 'ours.py'
    config.write_text(CONFIG.format(base=base, imports=list(imports)))
    options = [f'{key}={value}' for key, value in settings.items()]
    done = subprocess.run(
        [*command(config), '--work-dir', work_dir / 'run', '--cfg-options', *options],
        env=dict(
            os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', **environment
        ),
        cwd=work_dir,  # not the repository's
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    (log,) = (work_dir / 'run').glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


def mim_train(toolbox):
    """The command `mim train TOOLBOX`."""
    # Not among the extras: its own requirements would undo the environment.
    pytest.importorskip('mim')
    return lambda config: [sys.executable, '-m', 'mim', 'train', toolbox, config]


def dist_train(config):
    """MMDetection's own tools/dist_train.sh, on two ranks."""
    (package,) = util.find_spec('mmdet').submodule_search_locations
    return ['bash', Path(package) / '.mim/tools/dist_train.sh', config, '2']


def small(data, part, batch_size):
    """Settings of a dataloader."""
    return {
        f'{part}_dataloader.batch_size': batch_size,
        f'{part}_dataloader.num_workers': 0,
        f'{part}_dataloader.persistent_workers': False,
        f'{part}_dataloader.dataset.data_root': f'{data}/',
    }


def check(rows, modules):
    """Every module was measured once, at the end of the second micro-batch."""
    (measured,) = (row for row in rows if 'agvm/phi/backbone' in row)
    assert {key for key in measured if key.startswith('agvm/')} == {
        f'agvm/{kind}/{module}' for kind in ('phi', 'mu') for module in modules
    }
    assert all(0 < measured[f'agvm/phi/{module}'] < 2 for module in modules)


def detection_settings(data):
    """Faster R-CNN on the digits, one micro-batch of two images after the other."""
    settings = {
        'model.backbone.init_cfg': None,  # would be downloaded
        'model.roi_head.bbox_head.num_classes': 10,
        'model.train_cfg.rcnn.sampler.num': 32,
        'model.test_cfg.rcnn.score_thr': 0,  # a network that knows nothing is unsure
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
# The second for the data set.
IMPORTS = ['agvm_mm', 'agvm_mm.digits']


def test_mim_train_mmdet(data, tmp_path):
    settings = detection_settings(data)
    rows = train(mim_train('mmdet'), DETECTOR, tmp_path, settings, IMPORTS)
    check(rows, ['backbone', 'neck', 'rpn_head', 'bbox_head'])
    assert 'coco/bbox_mAP' in rows[-1]


def test_dist_train_of_mmdetection(data, tmp_path):
    """Two ranks, whose gradients are compared. The script is for GPUs: MMEngine is
    told of gloo, and the one call that asks for CUDA does nothing here."""
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
    check(rows, ['backbone', 'neck', 'rpn_head', 'bbox_head'])
    assert 'coco/bbox_mAP' in rows[-1]


def test_mim_train_mmsegmentation(data, tmp_path):
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
    base = 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'
    rows = train(mim_train('mmsegmentation'), base, tmp_path, settings)
    check(rows, ['backbone', 'neck', 'decode_head'])
    assert 'mIoU' in rows[-1]
