"""A detector on digits with its parameters or moments divided over two ranks."""

import copy

import pytest
import torch
from engines import ENGINES, as_zero, needs_fsdp
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from ranks import run_on_ranks
from zoo import load

from demo import pretrain_backbone, write_digits

pytestmark = pytest.mark.evidence
TWIN = 'digits/faster-rcnn_r18_w16_fpn_agvm-adamw_b256_10e_digits'


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """Write 16 training and 4 validation scenes and a barely trained backbone."""
    out = tmp_path_factory.mktemp('data') / 'digits'
    write_digits(out, num_train=16, num_val=4, progress=False)
    pretrain_backbone(out, num_patches=64, epochs=1, progress=False)
    return out


def train(folder, engine, settings):
    """Train and validate, and return metric, multipliers and the saved weights."""
    cfg = copy.deepcopy(settings)
    import_modules_from_strings(**cfg.custom_imports)
    cfg.work_dir = str(folder / engine)
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
    )
    if engine == 'zero':
        cfg.optim_wrapper.optimizer = as_zero(cfg.optim_wrapper.optimizer)
    if engine == 'fsdp':
        cfg.model_wrapper_cfg = dict(type='FullyShardedModel')
    runner = Runner.from_cfg(cfg)
    runner.train()
    metric = runner.message_hub.get_scalar('val/coco/bbox_mAP').current()
    agvm = runner.optim_wrapper.agvm
    return metric, agvm.multipliers, agvm.variances


def train_engines(folder, settings):
    return {engine: train(folder, engine, settings) for engine in ENGINES}


@needs_fsdp
def test_digits_detector_trains_and_validates(digits, tmp_path):
    settings = copy.deepcopy(load(TWIN))
    settings.launcher = 'pytorch'
    settings.experiment_name = 'sharded'
    settings.train_dataloader.update(batch_size=2, num_workers=0)
    settings.train_dataloader.persistent_workers = False
    settings.val_dataloader.update(num_workers=0, persistent_workers=False)
    settings.train_cfg.update(total_batch_size=8, max_epochs=2, val_interval=1)
    settings.param_scheduler = []
    settings.test_dataloader = settings.test_evaluator = settings.test_cfg = None
    settings.default_hooks.agvm.begin = 0
    settings.default_hooks.checkpoint = dict(type='AtomicCheckpointHook', interval=2)
    settings.model.backbone.update(frozen_stages=1, with_cp=True)
    text = settings.pretty_text.replace('data/digits/', f'{digits}/')
    settings = type(settings).fromstring(text, '.py')
    settings.optim_wrapper.paramwise_cfg = dict(norm_decay_mult=0.0)

    by_rank = run_on_ranks(train_engines, 2, tmp_path, settings)
    assert by_rank[0] == by_rank[1]
    metric, multipliers, variances = by_rank[0]['ddp']
    plain = torch.load(tmp_path / 'ddp/epoch_2.pth', weights_only=False)
    for engine in ENGINES[1:]:
        found = by_rank[0][engine]
        assert found[0] == pytest.approx(metric, abs=1e-3)
        assert found[1] == pytest.approx(multipliers, rel=1e-4)
        assert found[2] == pytest.approx(variances, abs=1e-4)
        saved = torch.load(tmp_path / engine / 'epoch_2.pth', weights_only=False)
        assert saved['state_dict'].keys() == plain['state_dict'].keys()
        for name, value in plain['state_dict'].items():
            torch.testing.assert_close(
                saved['state_dict'][name], value, rtol=1e-3, atol=1e-5, msg=name
            )
