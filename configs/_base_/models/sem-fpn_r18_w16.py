# Semantic FPN for 96 x 96 images of ten digits and background, small enough for a CPU:
# ResNet-18 at a quarter of its width, an FPN with 48 channels and a head with 32. Ten
# of eleven pixels are background; at full weight they would drown the digits in a short
# run.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(96, 96),
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        # MMSegmentation's stem has 64 channels for any width of the stages.
        stem_channels=16,
        base_channels=16,
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='data/digits/resnet18_w16.pth'),
    ),
    neck=dict(type='FPN', in_channels=[16, 32, 64, 128], out_channels=48, num_outs=4),
    decode_head=dict(
        type='FPNHead',
        in_channels=[48, 48, 48, 48],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=32,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=dict(type='BN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(
            type='CrossEntropyLoss',
            use_sigmoid=False,
            class_weight=[1.0] * 10 + [0.1],
            loss_weight=1.0,
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
