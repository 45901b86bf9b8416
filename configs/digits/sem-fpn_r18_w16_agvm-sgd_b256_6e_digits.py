_base_ = [
    '../_base_/models/sem-fpn_r18_w16.py',
    '../_base_/datasets/digits_semantic.py',
    '../_base_/schedules/digits_b256_6e.py',
    '../_base_/methods/agvm-sgd.py',
    '../_base_/digits_seg_runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=0.1))
# Measured at every update, from half an epoch after the warm-up on.
custom_hooks = [dict(type='VarianceSyncHook', interval=1, begin=40, estimator='halves')]
