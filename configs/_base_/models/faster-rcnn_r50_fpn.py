# MMDetection's Faster R-CNN with the changes of the AGVM authors' released recipe: a
# backbone with SyncBN, a softmax RPN and SmoothL1 losses. SmoothL1's gradient shrinks
# near the target, which a large learning rate needs.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
]

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
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(
            loss_bbox=dict(
                _delete_=True, type='SmoothL1Loss', beta=1.0, loss_weight=1.0
            )
        ),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=2000)),
    test_cfg=dict(rcnn=dict(score_thr=0.0)),
)
