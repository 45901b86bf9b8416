"""Models of all configs: they build, split into modules and take one update."""

import copy
import math

import pytest
import torch
from cases import for_each
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from synthetic import scope_ready, shrink, without_downloads
from zoo import LEAVES, ZOO, folder_of, load, name_of

TWO_STAGE = {'backbone', 'neck', 'rpn_head', 'bbox_head'}
MODULES = {
    'faster_rcnn': TWO_STAGE,
    'mask_rcnn': TWO_STAGE | {'mask_head'},
    'cascade_mask_rcnn': TWO_STAGE | {'mask_head'},
    'panoptic_fpn': TWO_STAGE | {'mask_head', 'semantic_head'},
    'retinanet': {'backbone', 'neck', 'bbox_head'},
    'upernet': {'backbone', 'decode_head', 'auxiliary_head'},
    'sem_fpn': {'backbone', 'neck', 'decode_head'},
}
# The large model is built without memory for its weights.
BILLION = next(leaf for leaf in ZOO if 'swin-1b' in leaf)


def model_of(leaf):
    return f'{folder_of(leaf)}/{name_of(leaf).model}'


# One leaf for each model, with AGVM.
BY_MODEL = {model_of(leaf): leaf for leaf in LEAVES if '_agvm-' in leaf}


def module_of(name):
    """Return the module that a parameter should belong to, by its name alone."""
    first, second, *_ = name.split('.')
    return second if first == 'roi_head' else first


def check_modules(leaf, model):
    expected = MODULES.get(leaf.split('/')[0])
    cfg = copy.deepcopy(load(leaf).optim_wrapper)
    parameters = build_optim_wrapper(model, cfg).make_agvm(model).parameters
    found = [(id(p), module) for module, own in parameters.items() for p in own]
    assert len({key for key, _ in found}) == len(found)
    found = dict(found)
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert names
    for name, parameter in names.items():
        assert found[id(parameter)] == module_of(name), name
    if expected is not None:
        assert {module_of(name) for name in names} == expected


@for_each(LEAVES)
def test_leaves_with_the_name_of_a_model_have_that_model(leaf):
    assert load(leaf).model == load(BY_MODEL[model_of(leaf)]).model


def test_large_model_has_a_billion_parameters(monkeypatch):
    # Swin reads its drop rates from a tensor, which has no content on 'meta'.
    linspace = torch.linspace
    monkeypatch.setattr(
        torch, 'linspace', lambda *a, **k: linspace(*a, **dict(k, device='cpu'))
    )
    cfg = load(BILLION)
    scope_ready(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(without_downloads(copy.deepcopy(cfg.model)))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0.95e9 < trainable < 1.1e9
    check_modules(BILLION, model)


def small(leaf, tmp_path):
    """Return the leaf's config for one update on random images."""
    cfg = copy.deepcopy(load(leaf))
    if leaf == BILLION:
        # The same network with a backbone that fits in memory.
        cfg.model.backbone.update(
            embed_dims=96, depths=[2, 2, 2, 2], num_heads=[3, 6, 12, 24], window_size=7
        )
        cfg.model.neck.in_channels = [96, 192, 384, 768]
    shrink(cfg, str(tmp_path))
    cfg.experiment_name = leaf.replace('/', '-')
    return cfg


# The small ones stand for all others.
@pytest.mark.parametrize(
    'model',
    [
        pytest.param(
            model, marks=() if model.startswith('digits/') else pytest.mark.evidence
        )
        for model in BY_MODEL
    ],
)
def test_modules_and_one_update(model, tmp_path):
    """With the Runner and the config's own loop, wrapper, schedules and hooks."""
    leaf = BY_MODEL[model]
    cfg = small(leaf, tmp_path)
    scope_ready(cfg.default_scope)
    runner = Runner.from_cfg(cfg)
    check_modules(leaf, runner.model)
    runner.model.init_weights()
    before = {
        name: parameter.detach().clone()
        for name, parameter in runner.model.named_parameters()
        if parameter.requires_grad
    }
    runner.train()
    assert runner.iter == 1

    loss = runner.message_hub.get_scalar('train/loss').current()
    assert math.isfinite(loss) and loss > 0
    after = dict(runner.model.named_parameters())
    moved = {
        module_of(name)
        for name, value in before.items()
        if not torch.equal(value, after[name].detach())
    }
    assert moved == {module_of(name) for name in before}
    assert all(parameter.isfinite().all() for parameter in after.values())

    wrapper = runner.optim_wrapper
    assert wrapper.agvm.num_measurements == 1
    assert wrapper.agvm.multipliers['backbone'] == 1
    assert set(wrapper.agvm.variances) == set(wrapper.agvm.multipliers)
    assert any(mu != 1 for mu in wrapper.agvm.multipliers.values())
    for module, mu in wrapper.agvm.multipliers.items():
        logged = runner.message_hub.get_scalar(f'agvm/mu_{module}')
        assert logged.current() == mu
