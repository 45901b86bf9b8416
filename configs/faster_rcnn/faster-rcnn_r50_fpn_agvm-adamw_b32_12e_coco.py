# AdamW + AGVM at total batch 32. Ours: lr square root from 1e-4 at 16; AGVM begins 100
# updates after the warm-up.
_base_ = './faster-rcnn_r50_fpn_adamw_b32_12e_coco.py'
optim_wrapper = dict(type='AGVMOptimWrapper')
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=7430))
