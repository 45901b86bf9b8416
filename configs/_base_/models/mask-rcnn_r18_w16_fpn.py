# The small Faster R-CNN with a mask head: two convolutions on 7 x 7 cells, 14 x 14
# masks.
_base_ = './faster-rcnn_r18_w16_fpn.py'

model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(pad_mask=True),
    roi_head=dict(
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=1),
            out_channels=48,
            featmap_strides=[4, 8, 16, 32],
            finest_scale=16,
        ),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=2,
            in_channels=48,
            conv_out_channels=48,
            roi_feat_size=7,
            num_classes=10,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(rcnn=dict(mask_size=14)),
    test_cfg=dict(rcnn=dict(mask_thr_binary=0.5)),
)
