"""Assignment of every trainable parameter to exactly one module."""

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn
from toy import ToyDetector

from agvm_mm.method.modules import (
    assign_modules,
    default_modules,
    has_sync_bn,
)
from agvm_mm.report.plan import build_model


def own(*names):
    """Return modules that are children of the model under their own name."""
    return {name: [name] for name in names}


def inside(outer, *names):
    """Return modules that are children of an opened child."""
    return {name: [f'{outer}.{name}'] for name in names}


TWO_STAGE = own('backbone', 'neck', 'rpn_head') | inside('roi_head', 'bbox_head')
STAGES = inside('roi_head', *(f'bbox_head.{i}' for i in range(3)))
DETR = own('backbone', 'neck', 'bbox_head')
# Two-stage layers of Deformable DETR and DINO, between encoder and decoder.
MEMORY = ['memory_trans_fc', 'memory_trans_norm']


def mask_transformer(head, *decoder):
    """Return the modules of a head like that of Mask2Former."""
    decoder = ['transformer_decoder', 'query_embed', *decoder]
    return dict(
        backbone=['backbone'],
        pixel_decoder=[f'{head}.pixel_decoder'],
        transformer_decoder=[f'{head}.{child}' for child in decoder],
        predictors=[f'{head}.cls_embed', f'{head}.mask_embed'],
    )


# Configs of the two toolboxes and the modules that AGVM must find in them.
REAL_MODELS = {
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': TWO_STAGE,
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': (
        TWO_STAGE | inside('roi_head', 'mask_head')
    ),
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': (
        own('backbone', 'neck', 'rpn_head')
        | STAGES
        | inside('roi_head', *(f'mask_head.{i}' for i in range(3)))
    ),
    # One mask head serves all stages.
    'mmdet::scnet/scnet_r50_fpn_1x_coco.py': (
        own('backbone', 'neck', 'rpn_head')
        | STAGES
        | inside('roi_head', 'mask_head', 'semantic_head')
        | inside('roi_head', 'feat_relay_head', 'glbctx_head')
    ),
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py': (
        own('backbone', 'neck', 'rpn_head')
        | inside('roi_head', *(f'bbox_head.{i}' for i in range(6)))
    ),
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py': own(
        'backbone', 'neck', 'bbox_head'
    ),
    'mmdet::solov2/solov2_r50_fpn_1x_coco.py': own('backbone', 'neck', 'mask_head'),
    'mmdet::detr/detr_r50_8xb2-150e_coco.py': (
        DETR | own('encoder') | dict(decoder=['decoder', 'query_embedding'])
    ),
    # level_embed is a parameter of the detector itself.
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': DETR
    | dict(
        encoder=['encoder', 'level_embed'],
        decoder=['decoder', 'query_embedding', 'reference_points_fc'],
    ),
    'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py': (
        DETR
        | dict(
            encoder=['encoder', 'level_embed'],
            decoder=['decoder', *MEMORY, 'pos_trans_fc', 'pos_trans_norm'],
        )
    ),
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py': DETR
    | dict(
        encoder=['encoder', 'level_embed'],
        decoder=['decoder', 'query_embedding', *MEMORY, 'dn_query_generator'],
    ),
    'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py': (
        TWO_STAGE | inside('roi_head', 'mask_head') | own('semantic_head')
    ),
    'mmdet::maskformer/maskformer_swin-l-p4-w12_64xb1-ms-300e_coco.py': (
        mask_transformer('panoptic_head', 'decoder_input_proj')
    ),
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py': (
        mask_transformer('panoptic_head', 'query_feat', 'level_embed')
    ),
    'mmdet::mask2former_vis/mask2former_r50_8xb2-8e_youtubevis2019.py': (
        mask_transformer('track_head', 'query_feat', 'level_embed')
    ),
    # The teacher is frozen.
    'mmdet::soft_teacher/'
    'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py': (
        inside('student', 'backbone', 'neck', 'rpn_head')
        | dict(bbox_head=['student.roi_head.bbox_head'])
    ),
    'mmdet::qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py': (
        inside('detector', 'backbone', 'neck', 'rpn_head')
        | dict(bbox_head=['detector.roi_head.bbox_head'])
        | own('track_head')
    ),
    'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py': own(
        'backbone', 'decode_head', 'auxiliary_head'
    ),
    'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py': own(
        'backbone', 'neck', 'decode_head'
    ),
    # A backbone with a backbone, and a list of auxiliary heads.
    'mmseg::bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py': own(
        'backbone', 'decode_head', 'auxiliary_head'
    ),
    'mmseg::ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py': own(
        'backbone', 'decode_head.0', 'decode_head.1'
    ),
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py': (
        mask_transformer('decode_head', 'query_feat', 'level_embed')
    ),
}


def check_model(path):
    config = get_config(path)
    assert isinstance(config, Config)
    try:
        model = build_model(config)
    finally:
        init_default_scope('mmengine')
    found = default_modules(model)
    assert {key: set(value) for key, value in found.items()} == {
        key: set(value) for key, value in REAL_MODELS[path].items()
    }
    assigned = assign_modules(model)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable <= set(assigned)

    # The optimizer of the config, whose parameters all have a module.
    cfg = dict(config.optim_wrapper, type='AGVMOptimWrapper')
    cfg.pop('loss_scale', None)
    try:
        init_default_scope(config.default_scope)
        wrapper = build_optim_wrapper(model, cfg)
    finally:
        init_default_scope('mmengine')
    agvm = wrapper.make_agvm(model)
    in_groups = [p for g in wrapper.optimizer.param_groups for p in g['params']]
    assert len(in_groups) == len({id(p) for p in in_groups})
    assert {id(p) for p in model.parameters() if p.requires_grad} <= {
        id(p) for p in in_groups
    }
    assert set(agvm.parameters) == set(REAL_MODELS[path])
    modulated = {id(p) for own in agvm.parameters.values() for p in own}
    assert {id(p) for p in in_groups if p.requires_grad} <= modulated


def test_models_of_toolboxes(subtests):
    for path in REAL_MODELS:
        with subtests.test(path=path):
            check_model(path)


def test_prefixes_match_at_dots_only():
    model = nn.ModuleDict(
        {name: nn.Linear(1, 1, bias=False) for name in ('neck', 'neck2', 'bottleneck')}
    )
    model['neck'].conv = nn.Linear(1, 1, bias=False)
    prefixes = dict(one=['neck'], two=['neck2.weight'], three=['bottleneck'])
    assert assign_modules(model, prefixes) == {
        'neck.weight': 'one',
        'neck.conv.weight': 'one',
        'neck2.weight': 'two',
        'bottleneck.weight': 'three',
    }


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


class ToyTeacher(BaseModel):
    """Two whole detectors; the teacher is frozen or not."""

    def __init__(self, frozen):
        super().__init__()
        self.student, self.teacher = ToyDetector(), ToyDetector()
        self.teacher.requires_grad_(not frozen)

    def forward(self, inputs, data_samples=None, mode='loss'):
        return self.student(inputs, data_samples, mode)


def test_wrapped_detector_has_the_modules_of_the_detector():
    assert default_modules(ToyTeacher(frozen=True)) == {
        'backbone': ['student.backbone'],
        'neck': ['student.neck'],
        'bbox_head': ['student.roi_head.bbox_head'],
        'mask_head': ['student.roi_head.mask_head'],
    }


def test_modules_of_two_trainable_detectors_have_full_names():
    heads = ('backbone', 'neck', 'roi_head.bbox_head', 'roi_head.mask_head')
    names = [f'{model}.{head}' for model in ('student', 'teacher') for head in heads]
    assert default_modules(ToyTeacher(frozen=False)) == {name: [name] for name in names}


def test_detector_is_split_alike_in_a_model_of_two_levels():
    model = nn.Module()
    model.algorithm = ToyTeacher(frozen=True)
    model.algorithm.backbone = nn.Identity()
    assert default_modules(model) == {
        name: [f'algorithm.{prefix}' for prefix in prefixes]
        for name, prefixes in default_modules(ToyTeacher(frozen=True)).items()
    }


def test_list_is_a_cascade_only_with_a_stage_for_each_child():
    model = ToyDetector()
    model.roi_head['mask_head'] = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    assert default_modules(model)['mask_head'] == ['roi_head.mask_head']
    model.roi_head.num_stages = 3
    assert default_modules(model)['mask_head'] == ['roi_head.mask_head']
    model.roi_head.num_stages = 2
    modules = default_modules(model)
    assert modules['mask_head.0'] == ['roi_head.mask_head.0']
    assert modules['mask_head.1'] == ['roi_head.mask_head.1']
    assert modules['bbox_head'] == ['roi_head.bbox_head']


def test_frozen_stage_is_not_a_module():
    model = ToyDetector()
    model.roi_head['mask_head'] = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model.roi_head.num_stages = 2
    model.roi_head['mask_head'][0].requires_grad_(False)
    assert 'mask_head.0' not in default_modules(model)
    assert 'mask_head.1' in default_modules(model)


def test_layers_join_the_decoder_only_in_an_encoder_decoder_transformer():
    model = ToyDetector()
    model.neck = nn.Sequential(model.neck)
    model.query_embedding = nn.Embedding(3, 4)
    model.memory_norm = nn.LayerNorm(4)
    model.level_embed = nn.Parameter(torch.zeros(4))
    layers = {'query_embedding', 'memory_norm', 'level_embed'}
    assert layers <= set(default_modules(model))
    model.encoder, model.decoder = (nn.Sequential(nn.Linear(2, 2)) for _ in range(2))
    modules = default_modules(model)
    assert set(modules['decoder']) == {'decoder', 'query_embedding', 'memory_norm'}
    assert set(modules['encoder']) == {'encoder', 'level_embed'}
    assert modules['neck'] == ['neck']


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


BAD_MODULES = [
    (COMPLETE | dict(head=['neck']), ValueError, 'belong to no module.*roi_head'),
    (COMPLETE | dict(rpn=['neck']), ValueError, "'neck.weight' belongs to 'head'"),
    (COMPLETE | dict(x=['roi_heads']), ValueError, "Did you mean 'roi_head'"),
    (COMPLETE | dict(x=['eck']), ValueError, "no parameter has the prefix 'eck'"),
    (COMPLETE | dict(x=[]), TypeError, r"modules\['x'\] must be a list"),
    (COMPLETE | dict(x='neck'), TypeError, r"modules\['x'\] must be a list"),
    ({}, TypeError, 'modules must be a dict'),
    (['backbone'], TypeError, 'modules must be a dict'),
]


def test_bad_modules_are_refused(subtests):
    for modules, error, message in BAD_MODULES:
        with (
            subtests.test(modules=modules, error=error),
            pytest.raises(error, match=message),
        ):
            assign_modules(ToyDetector(), modules)


def test_frozen_module_is_refused():
    model = ToyDetector()
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match="'backbone' has no trainable parameter"):
        assign_modules(model, COMPLETE)


def test_sync_bn_of_torch_and_mmcv_is_found():
    class Derived(nn.SyncBatchNorm):
        pass

    assert not has_sync_bn(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    for layer in nn.SyncBatchNorm(3), Derived(3):
        assert has_sync_bn(nn.Sequential(nn.Sequential(layer)))
