"""Digits configs take an update on real data and evaluate."""

import copy
import math

import pytest
import torch
from mmengine.runner import Runner
from twins import METRICS, TWINS
from zoo import load, name_of

pytestmark = pytest.mark.evidence

pytest.importorskip('panopticapi')
MODULES = {
    'faster-rcnn': {'backbone', 'neck', 'rpn_head', 'bbox_head'},
    'mask-rcnn': {'backbone', 'neck', 'rpn_head', 'bbox_head', 'mask_head'},
    'panoptic-fpn': {
        'backbone',
        'neck',
        'rpn_head',
        'bbox_head',
        'mask_head',
        'semantic_head',
    },
    'retinanet': {'backbone', 'neck', 'bbox_head'},
    'sem-fpn': {'backbone', 'neck', 'decode_head'},
    'upernet': {'backbone', 'decode_head', 'auxiliary_head'},
}


def replace_folder(settings, old, new):
    """Return a copy of settings with another folder in all paths."""
    if isinstance(settings, dict):
        return {key: replace_folder(value, old, new) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return type(settings)(replace_folder(value, old, new) for value in settings)
    return settings.replace(old, new) if isinstance(settings, str) else settings


def small(twin, data, work_dir):
    """Return the config for one measured update of 8 images of the tiny data."""
    cfg = copy.deepcopy(load(twin))
    for key in ('model', 'train_dataloader', 'val_dataloader', 'val_evaluator'):
        cfg[key] = replace_folder(cfg[key], 'data/digits/', f'{data}/')
    cfg.train_dataloader.update(batch_size=4)
    cfg.train_dataloader.dataset.indices = 8
    cfg.train_cfg.total_batch_size = 8
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    # A warm-up begins at a thousandth of the learning rate.
    cfg.param_scheduler = []
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.update(interval=-1, save_last=False)
    if 'agvm' in cfg.default_hooks:
        cfg.default_hooks.agvm.begin = 0
    if '_agvm-' not in twin:
        # The evaluation does not depend on the method.
        cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    if 'score_thr' in cfg.model.get('test_cfg', {}):
        # An untrained RetinaNet has low scores; without detections no metric.
        cfg.model.test_cfg.score_thr = 0.0
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'{name_of(twin)}-{work_dir.name}'
    return cfg


def module_of(name):
    """Return the module that a parameter belongs to."""
    first, second, *_ = name.split('.')
    return second if first == 'roi_head' else first


@pytest.mark.parametrize('twin', TWINS)
def test_one_update_and_an_evaluation(twin, tiny_digits, tmp_path):
    runner = Runner.from_cfg(small(twin, tiny_digits, tmp_path))
    weights = torch.load(tiny_digits / 'resnet18_w16.pth', weights_only=True)
    runner.model.init_weights()
    for name, value in runner.model.backbone.state_dict().items():
        assert torch.equal(value, weights[name]), f'{name} is not the pretrained one'
    before = copy.deepcopy(runner.model.state_dict())
    runner.train()
    assert runner.iter == 1

    loss = runner.message_hub.get_scalar('train/loss').current()
    assert math.isfinite(loss) and loss > 0
    moved = set()
    for name, parameter in runner.model.named_parameters():
        assert parameter.isfinite().all(), name
        if not torch.equal(parameter, before[name]):
            moved.add(module_of(name))
    modules = MODULES[name_of(twin).model.split('_')[0]]
    assert moved == modules

    wrapper = runner.optim_wrapper
    if '_agvm-' in twin:
        assert wrapper.agvm.num_measurements == 1
        assert set(wrapper.agvm.multipliers) == set(wrapper.agvm.variances) == modules
        assert wrapper.agvm.multipliers['backbone'] == 1
        others = [
            mu for name, mu in wrapper.agvm.multipliers.items() if name != 'backbone'
        ]
        assert all(mu != 1 for mu in others)
        assert all(0 <= phi <= 2 for phi in wrapper.agvm.variances.values())
        metric = METRICS[name_of(twin).model]
        value = runner.message_hub.get_scalar(f'val/{metric}').current()
        # Evaluators return -1 or nan when there is nothing to compare.
        assert 0 <= value <= 100
