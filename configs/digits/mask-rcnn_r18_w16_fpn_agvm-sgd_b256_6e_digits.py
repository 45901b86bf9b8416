_base_ = [
    '../_base_/models/mask-rcnn_r18_w16_fpn.py',
    '../_base_/datasets/digits_instance.py',
    '../_base_/schedules/digits_b256_6e.py',
    '../_base_/methods/agvm-sgd.py',
    '../_base_/digits_runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=0.04), clip_grad=dict(max_norm=10))
# Measured at every update, from half an epoch after the warm-up on.
custom_hooks = [dict(type='VarianceSyncHook', interval=1, begin=40, estimator='halves')]
