# MMSegmentation's UperNet with Swin-T for the 150 classes of ADE20K.
_base_ = [
    'mmseg::_base_/models/upernet_swin.py',
    'mmseg::_base_/datasets/ade20k.py',
]

# ImageNet-1K weights, as MMSegmentation hosts them.
swin_t = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/swin_tiny_patch4_window7_224_20220317-1cdeb081.pth'  # noqa: E501

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=swin_t)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
