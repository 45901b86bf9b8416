"""AGVMOptimWrapperConstructor: parameter groups, paramwise_cfg and merging."""

import pytest
import torch
from mmengine.optim import DefaultOptimWrapperConstructor
from toy import ToyDetector, make_wrapper

from agvm_mm.optim import AGVMOptimWrapperConstructor
from agvm_mm.optim.constructor import merge_groups

OPTIMIZER = dict(type='SGD', lr=0.1, weight_decay=0.01)
PARAMWISE = dict(
    bias_lr_mult=2.0,
    bias_decay_mult=0.0,
    custom_keys={'neck': dict(lr_mult=0.5), 'bbox_head': dict(decay_mult=3.0)},
)


def settings_by_parameter(model, wrapper):
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }


@pytest.mark.parametrize('paramwise_cfg', [None, PARAMWISE])
def test_learning_rates_and_weight_decays_equal_those_of_mmengine(paramwise_cfg):
    model = ToyDetector()
    ours = AGVMOptimWrapperConstructor(
        dict(type='AGVMOptimWrapper', optimizer=dict(OPTIMIZER)), paramwise_cfg
    )(model)
    theirs = DefaultOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(OPTIMIZER)), paramwise_cfg
    )(model)
    assert settings_by_parameter(model, ours) == settings_by_parameter(model, theirs)


def test_one_group_for_each_module_and_setting():
    model = ToyDetector()
    wrapper = make_wrapper(model, OPTIMIZER)
    modules = [g['module'] for g in wrapper.optimizer.param_groups]
    assert modules == ['backbone', 'neck', 'bbox_head', 'mask_head']

    constructor = AGVMOptimWrapperConstructor(
        dict(type='AGVMOptimWrapper', optimizer=dict(OPTIMIZER)), PARAMWISE
    )
    groups = constructor(model).optimizer.param_groups
    # The neck has no bias, and custom keys override the rule for biases.
    assert [g['module'] for g in groups] == [
        'backbone',
        'backbone',
        'neck',
        'bbox_head',
        'mask_head',
        'mask_head',
    ]


def test_only_groups_with_equal_settings_are_merged():
    a, b, c = (torch.nn.Parameter(torch.zeros(1)) for _ in range(3))
    merged = merge_groups(
        [
            dict(params=[a], lr=0.1, module='neck'),
            dict(params=[b], lr=0.1, module='head'),
            dict(params=[c], module='neck', lr=0.1),
        ]
    )
    assert [g['module'] for g in merged] == ['neck', 'head']
    assert merged[0]['params'][0] is a and merged[0]['params'][1] is c


def test_frozen_parameters_stay_in_optimizer_as_in_mmengine():
    model = ToyDetector()
    model.neck.requires_grad_(False)
    wrapper = make_wrapper(model, OPTIMIZER)
    groups = {g['module']: g for g in wrapper.optimizer.param_groups}
    assert groups[None]['params'][0] is model.neck.weight
    assert 'neck' not in wrapper.multipliers


def test_ddp_model_is_unwrapped_and_custom_modules_are_used():
    model = ToyDetector()
    wrapped = torch.nn.Module()
    wrapped.module = model
    wrapper = make_wrapper(
        wrapped,
        OPTIMIZER,
        modules=dict(backbone=['backbone'], head=['neck', 'roi_head']),
    )
    assert list(wrapper.multipliers) == ['backbone', 'head']


def test_unknown_prefix_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'roi_head'"):
        make_wrapper(ToyDetector(), OPTIMIZER, modules=dict(backbone=['roi_hed']))


@pytest.mark.parametrize(
    'kind, message',
    [
        ('AmpOptimWrapper', "got .*'AmpOptimWrapper'.*--amp .*overwrites the type"),
        ('OptimWrapper', "got optim_wrapper.type='OptimWrapper'$"),
        (None, 'got optim_wrapper.type=None$'),
    ],
)
def test_other_wrapper_types_are_refused(kind, message):
    with pytest.raises(TypeError, match=message):
        AGVMOptimWrapperConstructor(dict(type=kind, optimizer=OPTIMIZER))
