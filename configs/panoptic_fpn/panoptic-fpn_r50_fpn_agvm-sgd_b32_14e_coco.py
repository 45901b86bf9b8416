# SGD + AGVM at total batch 32. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 100 updates after the warm-up.
_base_ = './panoptic-fpn_r50_fpn_sgd_b32_14e_coco.py'
optim_wrapper = dict(type='AGVMOptimWrapper')
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=7430))
