"""The tools from the command line: one process, two ranks, resuming, testing."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from scripts import ROOT, run_script

from demo import pretrain_backbone, write_digits

AGVM = 'configs/digits/faster-rcnn_r18_w16_fpn_agvm-sgd_b256_10e_digits.py'
SEGMENTER = 'configs/digits/sem-fpn_r18_w16_agvm-sgd_b256_10e_digits.py'
PLAIN = 'configs/digits/faster-rcnn_r18_w16_fpn_sgd_b256_10e_digits.py'


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('data') / 'digits'
    write_digits(folder, num_train=32, num_val=4, progress=False)
    pretrain_backbone(folder, num_patches=64, epochs=1, progress=False)
    return folder


def options(data: Path, **more: Any) -> list[str]:
    """Return --cfg-options for two updates of 16 images per epoch on few data."""
    settings = {
        'train_dataloader.dataset.data_root': f'{data}/',
        'val_dataloader.dataset.data_root': f'{data}/',
        'test_dataloader.dataset.data_root': f'{data}/',
        'model.backbone.init_cfg.checkpoint': f'{data}/resnet18_w16.pth',
        'train_dataloader.batch_size': 4,
        'train_cfg.total_batch_size': 16,
        'train_cfg.max_epochs': 1,
        'default_hooks.logger.interval': 1,
        **more,
    }
    return ['--cfg-options', *(f'{key}={value}' for key, value in settings.items())]


def detector_options(data: Path, **more: Any) -> list[str]:
    """Return the options of a detector, which also needs an annotation file."""
    file = f'{data}/annotations/instances_val.json'
    return options(
        data,
        **{'val_evaluator.ann_file': file, 'test_evaluator.ann_file': file, **more},
    )


def run_ranks(script: str, *arguments: object) -> str:
    """Run a distributed tool on CPU cores and return its output."""
    path = f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
    environment = dict(
        os.environ,
        PYTHON=sys.executable,
        PYTHONPATH=path,
        OMP_NUM_THREADS='1',
        CUDA_VISIBLE_DEVICES='',
    )
    done = subprocess.run(
        [str(part) for part in (ROOT / 'tools' / script, *arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def read_log(work_dir: Path) -> str:
    """Read the log of the latest run in a work folder."""
    logs = work_dir.glob('*/*.log')
    return max(logs, key=lambda path: path.stat().st_mtime_ns).read_text()


def updates(output: str) -> list[tuple[str, str]]:
    """Return epoch and update of every training line of a log."""
    return re.findall(r'Epoch\(train\) +\[(\d+)\]\[ *(\d+)/2\]', output)


INFERENCE = """
import sys
import numpy as np
config, checkpoint, kind = sys.argv[1:]
image = np.zeros((64, 64, 3), np.uint8)
if kind == 'detector':
    from mmdet.apis import DetInferencer, inference_detector, init_detector
    model = init_detector(config, checkpoint, device='cpu')
    assert 'bboxes' in inference_detector(model, image).pred_instances
    inferencer = DetInferencer(config, checkpoint, device='cpu', show_progress=False)
    assert 'bboxes' in inferencer(image)['predictions'][0]
else:
    from mmseg.apis import MMSegInferencer, inference_model, init_model
    model = init_model(config, checkpoint, device='cpu')
    assert inference_model(model, image).pred_sem_seg.shape == (64, 64)
    inferencer = MMSegInferencer(config, checkpoint, device='cpu')
    assert inferencer(image)['predictions'].shape == (64, 64)
print('inference works')
"""


def check_inference(config: Path, checkpoint: Path, kind: str) -> None:
    """Load a checkpoint by the functions for inference, in a process of its own."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', INFERENCE, config, checkpoint, kind],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert 'inference works' in done.stdout, done.stderr[-4000:]


def test_one_process_trains_resumes_and_tests(data: Path, tmp_path: Path):
    begin = {'default_hooks.agvm.begin': 0}
    run_script(
        'train.py', AGVM, '--work-dir', tmp_path, *detector_options(data, **begin)
    )
    log = read_log(tmp_path)
    assert updates(log) == [('1', '1'), ('1', '2')]
    assert len(re.findall(r'AGVM at update .* mu: .*rpn_head ', log)) == 2
    assert 'coco/bbox_mAP: ' in log
    first = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)

    more = begin | {'train_cfg.max_epochs': 2}
    resume = ['--work-dir', tmp_path, '--resume']
    run_script('train.py', AGVM, *resume, *detector_options(data, **more))
    assert updates(read_log(tmp_path)) == [('2', '1'), ('2', '2')]
    second = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    name = 'rpn_head.rpn_conv.weight'
    assert not torch.equal(first['state_dict'][name], second['state_dict'][name])

    # A config that always resumes; the training data are on another machine.
    more = {'default_hooks.visualization.interval': 1, 'resume': True}
    more['train_dataloader.dataset.ann_file'] = 'elsewhere.json'
    run_script(
        'test.py',
        AGVM,
        tmp_path / 'epoch_2.pth',
        '--work-dir',
        tmp_path / 'test',
        '--out',
        tmp_path / 'predictions.pkl',
        '--show-dir',
        'pictures',
        *detector_options(data, **more),
    )
    assert 'coco/bbox_mAP: ' in read_log(tmp_path / 'test')
    assert (tmp_path / 'predictions.pkl').stat().st_size > 0
    assert len(list((tmp_path / 'test').glob('*/pictures/*'))) == 4
    check_inference(tmp_path / Path(AGVM).name, tmp_path / 'epoch_2.pth', 'detector')


def test_two_ranks_train_and_test(data: Path, tmp_path: Path):
    # SyncBN has no CPU version: the tools replace it.
    more = {'default_hooks.agvm.begin': 0, 'model.backbone.norm_cfg.type': 'SyncBN'}
    folder = ['--work-dir', tmp_path]
    output = run_ranks(
        'dist_train.sh', AGVM, 2, *folder, *detector_options(data, **more)
    )
    assert updates(output) == [('1', '1'), ('1', '2')]
    assert len(re.findall(r'AGVM at update .* mu: .*rpn_head ', output)) == 2
    evaluated = re.findall(r'coco/bbox_\w+: [-\d.]+', output)
    assert len(evaluated) == 6

    # One process finds the same with the checkpoint of two ranks.
    checkpoint = tmp_path / 'epoch_1.pth'
    folder = ['--work-dir', tmp_path / 'one']
    run_script('test.py', AGVM, checkpoint, *folder, *detector_options(data))
    log = read_log(tmp_path / 'one')
    assert re.findall(r'coco/bbox_\w+: [-\d.]+', log) == evaluated

    folder = ['--work-dir', tmp_path / 'two']
    output = run_ranks(
        'dist_test.sh', AGVM, checkpoint, 2, *folder, *detector_options(data)
    )
    assert re.findall(r'coco/bbox_\w+: [-\d.]+', output) == evaluated


RTMDET = """
_base_ = {digits!r}
norm_cfg = dict(type='MMSyncBN')
model = dict(
    _delete_=True,
    type='RTMDet',
    use_syncbn=True,
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[0, 0, 0], std=[1, 1, 1]),
    backbone=dict(
        type='CSPNeXt',
        deepen_factor=0.167,
        widen_factor=0.125,
        norm_cfg=dict(type='BN'),
    ),
    neck=dict(
        type='CSPNeXtPAFPN',
        in_channels=[32, 64, 128],
        out_channels=32,
        num_csp_blocks=1,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        type='RTMDetSepBNHead',
        num_classes=10,
        in_channels=32,
        feat_channels=32,
        stacked_convs=1,
        norm_cfg=dict(type='SyncBN'),
        anchor_generator=dict(type='MlvlPointGenerator', strides=[8, 16, 32]),
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        with_objectness=False,
        exp_on_reg=False,
    ),
    train_cfg=dict(
        assigner=dict(type='DynamicSoftLabelAssigner', topk=13),
        allowed_border=-1,
        pos_weight=-1,
    ),
    test_cfg=dict(
        nms_pre=100,
        score_thr=0.01,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=9,
    ),
)
"""


def test_ranks_train_a_model_that_makes_sync_bn_by_itself(data: Path, tmp_path: Path):
    config = tmp_path / 'rtmdet.py'
    config.write_text(RTMDET.format(digits=str(ROOT / AGVM)))
    settings = detector_options(data, **{'default_hooks.agvm.begin': 0})
    settings = [x for x in settings if not x.startswith('model.backbone')]
    folder = ['--work-dir', tmp_path / 'run']
    output = run_ranks('dist_train.sh', config, 2, *folder, *settings)
    assert updates(output) == [('1', '1'), ('1', '2')]
    assert len(re.findall(r'AGVM at update .* mu: .*bbox_head ', output)) == 2
    # A run on GPUs with the config that was written has SyncBN.
    written = Config.fromfile(tmp_path / 'run/rtmdet.py')
    assert written.model.use_syncbn and written.model.neck.norm_cfg.type == 'MMSyncBN'
    assert 'model_wrapper_cfg' not in written


@pytest.mark.evidence
def test_segmenter_on_two_ranks_and_on_one(data: Path, tmp_path: Path):
    more = {
        'default_hooks.agvm.begin': 0,
        'train_cfg.val_interval': 1,
        'model.decode_head.norm_cfg.type': 'SyncBN',
    }
    folder = ['--work-dir', tmp_path]
    output = run_ranks('dist_train.sh', SEGMENTER, 2, *folder, *options(data, **more))
    assert len(re.findall(r'AGVM at update .* mu: .*decode_head ', output)) == 2
    (evaluated,) = re.findall(r'mIoU: [.\d]+', output)
    config = tmp_path / Path(SEGMENTER).name
    check_inference(config, tmp_path / 'epoch_1.pth', 'segmenter')

    run_script(
        'test.py',
        SEGMENTER,
        tmp_path / 'epoch_1.pth',
        '--work-dir',
        tmp_path / 'one',
        '--out',
        tmp_path / 'predictions.pkl',
        '--show-dir',
        'pictures',
        *options(data, **{'default_hooks.visualization.interval': 1}),
    )
    assert re.findall(r'mIoU: [.\d]+', read_log(tmp_path / 'one')) == [evaluated]
    assert len(list((tmp_path / 'one/pictures').rglob('*.png'))) == 4
    assert (tmp_path / 'predictions.pkl').stat().st_size > 0


def test_plain_sgd_logs_nothing_of_agvm(data: Path, tmp_path: Path):
    run_script('train.py', PLAIN, '--work-dir', tmp_path, *detector_options(data))
    log = read_log(tmp_path)
    assert updates(log) == [('1', '1'), ('1', '2')]
    assert 'agvm/' not in log[log.index('Epoch(train)') :]


def test_missing_data_is_an_error_before_training(tmp_path: Path):
    folder = ['--work-dir', tmp_path / 'run']
    with pytest.raises(FileNotFoundError, match='python -m demo.data --out'):
        run_script('train.py', PLAIN, *folder, *detector_options(tmp_path))


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh'])
def test_wrong_arguments_are_refused(script: str):
    command = [ROOT / 'tools' / script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert f'usage: {ROOT}/tools/{script} CONFIG' in done.stderr
    command += ['a.py', '0', '0']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert 'RANKS must be at least 1, got 0' in done.stderr
