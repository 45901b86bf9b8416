"""Assignment of every trainable parameter to exactly one module."""

import pytest
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from toy import ToyDetector

from agvm_mm.modules import assign_modules, default_modules, has_prefix
from agvm_mm.optim import AGVMOptimWrapperConstructor

ROI_HEADS = {'backbone', 'neck', 'rpn_head', 'bbox_head'}
# Configs of the two toolboxes and the modules that AGVM must find in them.
REAL_MODELS = {
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': ROI_HEADS,
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': ROI_HEADS | {'mask_head'},
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': (
        ROI_HEADS | {'mask_head'}
    ),
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py': {'backbone', 'neck', 'bbox_head'},
    'mmdet::detr/detr_r50_8xb2-150e_coco.py': {
        'backbone',
        'neck',
        'bbox_head',
        'encoder',
        'decoder',
        'query_embedding',
    },
    # level_embed is a parameter of the detector itself.
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': {
        'backbone',
        'neck',
        'bbox_head',
        'encoder',
        'decoder',
        'query_embedding',
        'reference_points_fc',
        'level_embed',
    },
    'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py': (
        ROI_HEADS | {'mask_head', 'semantic_head'}
    ),
    'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py': {
        'backbone',
        'decode_head',
        'auxiliary_head',
    },
    'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py': {
        'backbone',
        'neck',
        'decode_head',
    },
}


def build_model(path):
    """Return the model of a config, without pretrained weights, and the config."""
    from mmengine.config import Config
    from mmengine.hub import get_config

    scope = path.split('::')[0]
    config = get_config(path)
    assert isinstance(config, Config)
    if scope == 'mmdet':
        import mmdet.models  # noqa: F401
    else:
        import mmseg.models  # noqa: F401
    init_default_scope(scope)
    try:
        return MODELS.build(config.model), config
    finally:
        init_default_scope('mmengine')


@pytest.mark.parametrize('path', REAL_MODELS)
def test_models_of_toolboxes(path):
    model, config = build_model(path)
    assigned = assign_modules(model)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable <= set(assigned)
    assert set(assigned.values()) == REAL_MODELS[path]
    for name, module in assigned.items():
        assert module in name.split('.')[:2]

    # The optimizer of the config, built by AGVM's constructor.
    cfg = dict(config.optim_wrapper, type='AGVMOptimWrapper')
    paramwise_cfg = cfg.pop('paramwise_cfg', None)
    wrapper = AGVMOptimWrapperConstructor(cfg, paramwise_cfg)(model)
    in_groups = [p for g in wrapper.optimizer.param_groups for p in g['params']]
    assert len(in_groups) == len({id(p) for p in in_groups})
    assert {id(p) for p in model.parameters() if p.requires_grad} <= {
        id(p) for p in in_groups
    }
    assert set(wrapper.multipliers) == REAL_MODELS[path]
    # Groups are merged: there are far fewer than parameters.
    assert len(wrapper.optimizer.param_groups) <= 4 * len(REAL_MODELS[path])


def test_prefixes_match_at_dots_only():
    assert has_prefix('neck.conv.weight', 'neck')
    assert has_prefix('neck.weight', 'neck.weight')
    assert not has_prefix('bottleneck.weight', 'neck')
    assert not has_prefix('neck2.weight', 'neck')


def test_default_split_of_a_detector():
    assert default_modules(ToyDetector()) == {
        'backbone': ['backbone'],
        'neck': ['neck'],
        'bbox_head': ['roi_head.bbox_head'],
        'mask_head': ['roi_head.mask_head'],
    }


def test_duplicate_names_and_parameters_of_roi_head_itself():
    model = ToyDetector()
    model.bbox_head = nn.Linear(2, 2)
    model.roi_head.register_parameter('scale', nn.Parameter(model.neck.weight[:1]))
    assigned = assign_modules(model)
    assert assigned['bbox_head.weight'] == 'bbox_head'
    assert assigned['roi_head.bbox_head.weight'] == 'roi_head.bbox_head'
    assert assigned['roi_head.scale'] == 'roi_head'


def test_frozen_child_is_not_a_module():
    model = ToyDetector()
    model.neck.requires_grad_(False)
    model.backbone[0].requires_grad_(False)
    assigned = assign_modules(model)
    assert 'neck' not in assigned.values()
    assert assigned['backbone.0.weight'] == 'backbone'


def test_shared_parameters_are_assigned_once():
    model = ToyDetector()
    model.second_neck = model.neck
    assert 'second_neck' not in assign_modules(model).values()


def test_custom_modules():
    modules = dict(
        stem=['backbone.0'], backbone=['backbone.2'], head=['neck', 'roi_head']
    )
    assigned = assign_modules(ToyDetector(), modules)
    assert assigned['backbone.0.weight'] == 'stem'
    assert assigned['roi_head.mask_head.bias'] == 'head'
    assert len(assigned) == len(list(ToyDetector().parameters()))


COMPLETE = dict(backbone=['backbone'], head=['neck', 'roi_head'])


@pytest.mark.parametrize(
    'modules, error, message',
    [
        (COMPLETE | dict(head=['neck']), ValueError, 'belong to no module.*roi_head'),
        (COMPLETE | dict(rpn=['neck']), ValueError, "'neck.weight' belongs to 'head'"),
        (COMPLETE | dict(x=['roi_heads']), ValueError, "Did you mean 'roi_head'"),
        (COMPLETE | dict(x=['eck']), ValueError, "no parameter has the prefix 'eck'"),
        (COMPLETE | dict(x=[]), TypeError, r"modules\['x'\] must be a list"),
        (COMPLETE | dict(x='neck'), TypeError, r"modules\['x'\] must be a list"),
        ({}, TypeError, 'modules must be a dict'),
        (['backbone'], TypeError, 'modules must be a dict'),
    ],
)
def test_bad_modules_are_refused(modules, error, message):
    with pytest.raises(error, match=message):
        assign_modules(ToyDetector(), modules)


def test_frozen_module_is_refused():
    model = ToyDetector()
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match="'backbone' has no trainable parameter"):
        assign_modules(model, COMPLETE)
