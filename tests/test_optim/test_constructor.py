"""AGVMOptimWrapperConstructor: parameter groups, paramwise_cfg and merging."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import (
    DefaultOptimWrapperConstructor,
    OptimWrapper,
    OptimWrapperDict,
)
from toy import ToyDetector, make_wrapper

from agvm_mm.optim import AGVMOptimWrapperConstructor
from agvm_mm.optim.constructor import split_groups

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
    groups = split_groups(
        [
            dict(params=[a, b], lr=0.1, param_names=['a', 'b']),
            dict(params=[c], param_names=['c'], lr=0.1),
        ],
        {id(a): 'neck', id(b): 'head', id(c): 'neck'},
    )
    assert [g['module'] for g in groups] == ['neck', 'head']
    assert groups[0]['params'][0] is a and groups[0]['params'][1] is c
    assert [g['param_names'] for g in groups] == [['a', 'c'], ['b']]
    a_and_c = dict(params=[a, c], lr=0.1)
    assert len(split_groups([a_and_c], {id(a): 'neck', id(c): 'neck'})) == 1
    other_rate = dict(params=[b], lr=0.1 + 1e-12)
    modules = dict.fromkeys(map(id, (a, b, c)), 'neck')
    assert len(split_groups([a_and_c, other_rate], modules)) == 2


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


class SharedHeads(ToyDetector):
    """Heads that share one layer, as RTMDet's do."""

    def __init__(self):
        super().__init__()
        self.roi_head['bbox_head'].shared = self.roi_head['mask_head']


def build(constructor, model, paramwise_cfg, kind='AGVMOptimWrapper', **settings):
    settings = dict(type=kind, optimizer=dict(OPTIMIZER), **settings)
    return constructor(settings, paramwise_cfg)(model)


@pytest.mark.parametrize(
    'constructor, kind',
    [
        (AGVMOptimWrapperConstructor, 'AGVMOptimWrapper'),
        (DefaultOptimWrapperConstructor, 'OptimWrapper'),
    ],
)
def test_shared_parameters_are_stepped_once_or_refused_as_in_mmengine(
    constructor, kind
):
    shared = SharedHeads()
    with pytest.raises(ValueError, match='in more than one parameter group'):
        build(constructor, shared, dict(bias_lr_mult=2.0), kind)
    for options in (None, dict(bias_lr_mult=2.0, bypass_duplicate=True)):
        wrapper = build(constructor, shared, options, kind)
        parameters = [p for g in wrapper.optimizer.param_groups for p in g['params']]
        assert len(parameters) == len({id(p) for p in parameters}) == 9


def test_unread_options_are_refused():
    for key, hint in (
        ('decay_rate', 'optim_wrapper.base_constructor'),
        ('bias_lr_mul', "Did you mean 'bias_lr_mult'"),
    ):
        with pytest.raises(ValueError, match=f'does not read {key}.*{hint}'):
            build(AGVMOptimWrapperConstructor, ToyDetector(), {key: 0.5})
    with pytest.raises(ValueError, match='does not read by_width'):
        build(
            AGVMOptimWrapperConstructor,
            ToyDetector(),
            dict(by_depth=0.5, by_width=2.0, norm_decay_mult=0.0),
            base_constructor=ByDepth,
        )


class ByDepth(DefaultOptimWrapperConstructor):
    """Constructor that reads a copy of its options, as attributes of the config."""

    def add_params(self, params, module, **kwargs):
        """Add one group for each depth."""
        factor = self.paramwise_cfg.by_depth
        groups = {}
        for name, parameter in module.named_parameters():
            depth = name.count('.')
            group = groups.setdefault(
                depth, dict(params=[], param_names=[], lr=self.base_lr * factor**depth)
            )
            group['params'].append(parameter)
            group['param_names'].append(name)
        params.extend(groups.values())


def test_groups_of_the_base_constructor_are_split_by_module():
    model = ToyDetector()
    wrapper = build(
        AGVMOptimWrapperConstructor,
        model,
        dict(by_depth=0.5),
        base_constructor=ByDepth,
    )
    theirs = build(ByDepth, model, ConfigDict(by_depth=0.5), 'OptimWrapper')
    assert settings_by_parameter(model, wrapper) == settings_by_parameter(model, theirs)
    by_name = dict(model.named_parameters())
    for group in wrapper.optimizer.param_groups:
        for name, parameter in zip(group['param_names'], group['params'], strict=True):
            assert by_name[name] is parameter
            assert group['module'] in name


@pytest.mark.parametrize(
    'base, error, message',
    [
        ('LayerDecay', KeyError, "base_constructor='LayerDecay' is not registered"),
        ('AGVMOptimWrapperConstructor', ValueError, 'splits the groups of another'),
        (AGVMOptimWrapperConstructor, ValueError, 'splits the groups of another'),
    ],
)
def test_unusable_base_constructor_is_refused(base, error, message):
    with pytest.raises(error, match=message):
        make_wrapper(ToyDetector(), OPTIMIZER, base_constructor=base)


def test_several_optimizers_are_refused():
    class Several:
        def __init__(self, optim_wrapper_cfg, paramwise_cfg):
            pass

        def __call__(self, model):
            return OptimWrapperDict(
                a=OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
            )

    with pytest.raises(TypeError, match='does not support OptimWrapperDict'):
        make_wrapper(ToyDetector(), OPTIMIZER, base_constructor=Several)


def test_one_module_is_refused_with_the_prefixes_of_its_parts():
    model = torch.nn.Module()
    model.student = ToyDetector()
    with pytest.raises(ValueError, match=r'student only.*student\.backbone'):
        make_wrapper(model, OPTIMIZER, modules=dict(student=['student']))


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
