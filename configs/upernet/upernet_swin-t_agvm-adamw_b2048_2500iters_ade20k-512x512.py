# AdamW + AGVM at total batch 2048. Ours: lr square root from 1e-4 at 16; AGVM begins 10
# updates after the warm-up.
_base_ = './upernet_swin-t_adamw_b2048_2500iters_ade20k-512x512.py'
optim_wrapper = dict(type='AGVMOptimWrapper')
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=5, begin=208))
