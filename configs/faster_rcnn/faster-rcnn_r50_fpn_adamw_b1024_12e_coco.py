# AdamW at total batch 1024. Ours: lr square root from 1e-4 at 16.
_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/schedules/coco_adamw.py',
]
train_cfg = dict(total_batch_size=1024)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=1e-4 * (1024 / 16) ** 0.5))
default_hooks = dict(logger=dict(interval=10))
