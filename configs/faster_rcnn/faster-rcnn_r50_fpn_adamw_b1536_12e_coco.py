# AdamW at total batch 1536. Ours: lr square root from 1e-4 at 16.
_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/schedules/coco_adamw.py',
]
train_cfg = dict(val_interval=4, total_batch_size=1536)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=1e-4 * (1536 / 16) ** 0.5))
default_hooks = dict(checkpoint=dict(interval=4), logger=dict(interval=10))
