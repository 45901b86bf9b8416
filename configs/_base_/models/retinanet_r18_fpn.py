# MMDetection's RetinaNet with ResNet-18 and, as in the AGVM authors' recipe for the
# R-CNNs, SyncBN in the backbone.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
]

model = dict(
    backbone=dict(
        depth=18,
        frozen_stages=1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
