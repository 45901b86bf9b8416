_base_ = [
    '../_base_/models/retinanet_r18_w16_fpn.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/digits_10e.py',
]
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=2),
)
# Every update from epoch 4 on, after the warm-up.
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=1, begin=64))
