_base_ = [
    '../_base_/models/sem-fpn_r18_w16.py',
    '../_base_/datasets/digits_semantic.py',
    '../_base_/schedules/digits_10e_seg.py',
]
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(type='SGD', lr=0.2, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=2),
)
# Every update from epoch 4 on, after the warm-up.
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=1, begin=64))
