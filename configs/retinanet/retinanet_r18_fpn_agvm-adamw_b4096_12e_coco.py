# AdamW + AGVM at total batch 4096. Ours: lr square root from 1e-4 at 16; AGVM begins 15
# updates after the warm-up.
_base_ = [
    '../_base_/models/retinanet_r18_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_b4096_12e.py',
    '../_base_/methods/agvm-adamw.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=1e-4 * (4096 / 16) ** 0.5))
custom_hooks = [
    dict(type='VarianceSyncHook', interval=1, begin=73, estimator='replicas')
]
