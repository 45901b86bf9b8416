"""What the summary of a run and plan.py say about losses, SyncBN and samplers."""

import copy
import random

import numpy as np
import torch
from mmdet.datasets import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from ranks import run_on_ranks
from small_models import small_model
from torch.utils.data import DataLoader
from toy import ToyDetector

from agvm_mm.report.plan import use_toolbox
from agvm_mm.training.batch import BatchSize
from agvm_mm.training.dataloader import build_update_dataloader
from agvm_mm.training.normalizers import describe_losses
from agvm_mm.training.summary import repeated_images


def test_names_the_losses_of_this_model():
    model = small_model('RetinaNet').float()
    found = describe_losses(
        model, BatchSize(ranks=2, images_per_rank=1, micro_batches=8)
    )
    assert found == (
        'loss_cls, loss_bbox: depend on what else is in a micro-batch, such as its '
        'positives; 16 x 1 images are not one batch of 16; use 4 images or more in '
        "each, or normalizers='average'"
    )
    assert describe_losses(model, BatchSize(1, 4, 2)).endswith(
        "; 2 x 4 images are not one batch of 8; normalizers='average'"
    )
    assert describe_losses(model, BatchSize(1, 4, 1)) == ''
    segmenter = small_model('Semantic FPN').float()
    assert describe_losses(segmenter, BatchSize(1, 1, 16)) == ''
    # Divided by masks, of which an image has one for each of its classes.
    found = describe_losses(small_mask2former(), BatchSize(1, 1, 16))
    assert found.startswith('decode.loss_cls, decode.loss_mask, decode.loss_dice, ')


def small_mask2former():
    cfg = get_config('mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py')
    use_toolbox(cfg)
    head = cfg.model.decode_head
    cfg.model.backbone.update(depth=18, init_cfg=None)
    head.update(in_channels=[64, 128, 256, 512], num_queries=5)
    head.pixel_decoder.encoder.num_layers = head.transformer_decoder.num_layers = 1
    return revert_sync_batchnorm(MODELS.build(cfg.model))


def test_says_what_it_cannot_examine():
    found = describe_losses(ToyDetector(), BatchSize(1, 4, 2))
    assert found.startswith(
        'not examined (TypeError: ToyDetector is a model of neither'
    )


def test_changes_nothing():
    model = small_model('YOLOX').float()  # SimOTA, and BatchNorm that counts.
    model.train()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert 'loss_obj' in describe_losses(model, BatchSize(1, 1, 16))
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def describe_on_first_rank():
    if torch.distributed.get_rank():
        return None  # It would wait in reduce_mean for ever.
    return describe_losses(small_model('FCOS').float(), BatchSize(2, 1, 8))


def test_no_rank_waits_for_another():
    found = run_on_ranks(describe_on_first_rank, 2, timeout=60)
    assert found[0].startswith('loss_cls, loss_bbox, loss_centerness: depend')


def test_repeated_images(monkeypatch):
    module = 'mmengine.dataset.sampler.get_dist_info'
    monkeypatch.setattr(module, lambda: (0, 4))
    for round_up, expected in [(True, 2), (False, 0)]:
        sampler = DefaultSampler(list(range(10)), round_up=round_up)
        loader = DataLoader(sampler.dataset, 2, sampler=sampler)
        assert repeated_images(loader) == expected
        # The sampler of this one is torch's own.
        batches = AspectRatioBatchSampler(sampler, 2)
        loader = DataLoader(sampler.dataset, batch_sampler=batches)
        assert repeated_images(loader) == expected
        assert repeated_images(build_update_dataloader(loader, 2, 0)) == expected
