# AdamW with AGVM. The leaf gives the learning rate and when to measure.
_base_ = './adamw.py'

optim_wrapper = dict(
    type='AGVMOptimWrapper',
    constructor='AGVMOptimWrapperConstructor',
    anchor='backbone',
    momentum=0.97,
    ratio_bounds=(0.5, 10.0),
)
