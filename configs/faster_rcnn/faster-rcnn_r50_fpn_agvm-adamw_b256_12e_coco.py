# AdamW + AGVM at total batch 256. Ours: lr square root from 1e-4 at 16; AGVM begins 100
# updates after the warm-up.
_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_b256_12e.py',
    '../_base_/methods/agvm-adamw.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=1e-4 * (256 / 16) ** 0.5))
custom_hooks = [dict(type='VarianceSyncHook', interval=10, begin=1020)]
