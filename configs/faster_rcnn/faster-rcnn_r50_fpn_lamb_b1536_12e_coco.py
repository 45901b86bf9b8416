# LAMB at total batch 1536. Ours: lr square root from 0.005 at 512.
_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/schedules/coco_adamw.py',
]
train_cfg = dict(val_interval=4, total_batch_size=1536)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(
    optimizer=dict(
        type='BaselineLAMB', lr=0.005 * (1536 / 512) ** 0.5, weight_decay=0.01
    )
)
default_hooks = dict(checkpoint=dict(interval=4), logger=dict(interval=10))
