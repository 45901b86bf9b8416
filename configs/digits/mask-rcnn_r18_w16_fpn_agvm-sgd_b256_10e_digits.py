_base_ = './mask-rcnn_r18_w16_fpn_sgd_b256_10e_digits.py'
optim_wrapper = dict(type='AGVMOptimWrapper')
# Every update from epoch 4 on, after the warm-up.
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=1, begin=64))
