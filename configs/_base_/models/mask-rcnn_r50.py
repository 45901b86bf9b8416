# MMDetection's Mask R-CNN with the changes of the AGVM authors' released recipe: a
# backbone with SyncBN, a softmax RPN and SmoothL1 losses. Without a data set.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        frozen_stages=1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        norm_eval=False,
    ),
    rpn_head=dict(
        loss_cls=dict(use_sigmoid=False),
        loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=0)),
        bbox_head=dict(
            loss_bbox=dict(
                _delete_=True, type='SmoothL1Loss', beta=1.0, loss_weight=1.0
            )
        ),
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=2)),
    ),
    train_cfg=dict(
        rpn_proposal=dict(max_per_img=2000),
        rcnn=dict(assigner=dict(match_low_quality=True)),
    ),
    test_cfg=dict(rcnn=dict(score_thr=0.0)),
)
