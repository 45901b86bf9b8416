# AdamW + AGVM at total batch 10240. Ours: lr square root from 1e-4 at 16; AGVM begins 6
# updates after the warm-up.
_base_ = './faster-rcnn_r50_fpn_adamw_b10240_12e_coco.py'
optim_wrapper = dict(type='AGVMOptimWrapper')
default_hooks = dict(
    agvm=dict(type='VarianceSyncHook', interval=1, begin=30, estimator='replicas')
)
