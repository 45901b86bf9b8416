# AdamW + AGVM at total batch 10240. Ours: lr square root from 1e-4 at 16; AGVM begins 2
# updates after the warm-up.
_base_ = './upernet_swin-t_adamw_b10240_500iters_ade20k-512x512.py'
optim_wrapper = dict(type='AGVMOptimWrapper')
default_hooks = dict(
    agvm=dict(type='VarianceSyncHook', interval=1, begin=42, estimator='replicas')
)
