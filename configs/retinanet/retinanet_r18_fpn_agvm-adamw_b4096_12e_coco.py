# AdamW + AGVM at total batch 4096. Ours: lr square root from 1e-4 at 16; AGVM begins 15
# updates after the warm-up.
_base_ = './retinanet_r18_fpn_adamw_b4096_12e_coco.py'
optim_wrapper = dict(type='AGVMOptimWrapper')
default_hooks = dict(
    agvm=dict(type='VarianceSyncHook', interval=1, begin=73, estimator='replicas')
)
