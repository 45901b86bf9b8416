_base_ = './faster-rcnn_r18_w16_fpn_adamw_b256_10e_digits.py'

# Measured at every update from epoch 4 on, when the warm-up is over.
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    constructor='AGVMOptimWrapperConstructor',
    anchor='backbone',
    momentum=0.97,
    ratio_bounds=(0.5, 10.0),
)
custom_hooks = [dict(type='VarianceSyncHook', interval=1, begin=64, estimator='halves')]
