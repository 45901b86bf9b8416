# RetinaNet for 96 x 96 images of ten digits, small enough for a CPU: the backbone of
# the small Faster R-CNN, an FPN from stride 8 on, and two convolutions in each branch.
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=16,
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='data/digits/resnet18_w16.pth'),
    ),
    neck=dict(
        type='FPN',
        in_channels=[16, 32, 64, 128],
        start_level=1,
        out_channels=48,
        num_outs=3,
    ),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=10,
        in_channels=48,
        stacked_convs=2,
        feat_channels=48,
        # 12 to 68 pixels, upright like digits
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=1.5,
            scales_per_octave=2,
            ratios=[1.0, 1.5, 2.0],
            strides=[8, 16, 32],
        ),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[1.0, 1.0, 1.0, 1.0],
        ),
        loss_cls=dict(
            type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0
        ),
        loss_bbox=dict(type='SmoothL1Loss', beta=1.0 / 9, loss_weight=1.0),
        # MMDetection's 0.01 is for 256 channels: with 48, almost no signal would pass.
        init_cfg=dict(
            type='Normal',
            layer='Conv2d',
            std=0.06,
            override=[
                dict(type='Normal', name='retina_cls', std=0.01, bias_prob=0.01),
                dict(type='Normal', name='retina_reg', std=0.01),
            ],
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.4,
            min_pos_iou=0,
            ignore_iof_thr=-1,
        ),
        # Focal loss needs all anchors.
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=100,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=20,
    ),
)
