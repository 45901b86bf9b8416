# AdamW + AGVM at total batch 960. Ours: lr square root from 1e-4 at 16; AGVM begins 62
# updates after the warm-up.
_base_ = [
    '../_base_/models/cascade-mask-rcnn_swin-1b_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_b960_12e.py',
    '../_base_/methods/agvm-adamw_swin.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=1e-4 * (960 / 16) ** 0.5))
custom_hooks = [dict(type='VarianceSyncHook', interval=10, begin=308)]
