# AdamW at total batch 10240. Ours: lr square root from 1e-4 at 16.
_base_ = ['../_base_/models/retinanet_r18_fpn.py', '../_base_/schedules/coco_adamw.py']
train_cfg = dict(val_interval=4, total_batch_size=10240)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=1e-4 * (10240 / 16) ** 0.5))
default_hooks = dict(checkpoint=dict(interval=4), logger=dict(interval=1))
