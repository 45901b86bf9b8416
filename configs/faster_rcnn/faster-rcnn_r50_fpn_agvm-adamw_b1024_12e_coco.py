# AdamW + AGVM at total batch 1024. Ours: lr square root from 1e-4 at 16; AGVM begins 58
# updates after the warm-up.
_base_ = './faster-rcnn_r50_fpn_adamw_b1024_12e_coco.py'
optim_wrapper = dict(type='AGVMOptimWrapper')
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=288))
