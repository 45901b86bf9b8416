# The small Mask R-CNN with a semantic head for the four textures, and MMDetection's
# fusion of things and stuff. The thresholds are those of COCO; the smallest area of
# stuff is about as large a part of the image as there.
_base_ = './mask-rcnn_r18_w16_fpn.py'

model = dict(
    type='PanopticFPN',
    data_preprocessor=dict(
        pad_mask=True, mask_pad_value=0, pad_seg=True, seg_pad_value=255
    ),
    semantic_head=dict(
        type='PanopticFPNHead',
        num_things_classes=10,
        num_stuff_classes=4,
        in_channels=48,
        inner_channels=32,
        start_level=0,
        end_level=4,
        norm_cfg=dict(type='GN', num_groups=8, requires_grad=True),
        loss_seg=dict(type='CrossEntropyLoss', ignore_index=255, loss_weight=0.5),
    ),
    panoptic_fusion_head=dict(
        type='HeuristicFusionHead', num_things_classes=10, num_stuff_classes=4
    ),
    test_cfg=dict(
        rcnn=dict(score_thr=0.6, nms=dict(class_agnostic=True)),
        panoptic=dict(mask_overlap=0.5, stuff_area_limit=100),
    ),
)
