_base_ = [
    '../_base_/models/faster-rcnn_r18_w16_fpn.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/digits_10e.py',
]
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(type='SGD', lr=0.04, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=10),
)
# Every update from epoch 4 on, after the warm-up.
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=1, begin=64))
