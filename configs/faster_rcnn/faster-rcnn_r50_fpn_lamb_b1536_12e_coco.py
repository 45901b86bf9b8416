# LAMB at total batch 1536. Ours: lr square root from 0.005 at 512.
_base_ = './faster-rcnn_r50_fpn_adamw_b1536_12e_coco.py'
optim_wrapper = dict(
    optimizer=dict(
        type='BaselineLAMB', lr=0.005 * (1536 / 512) ** 0.5, weight_decay=0.01
    )
)
