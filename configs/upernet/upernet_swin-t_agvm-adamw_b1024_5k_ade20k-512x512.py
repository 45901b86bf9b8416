# AdamW + AGVM at total batch 1024. Ours: lr square root from 1e-4 at 16; AGVM begins 20
# updates after the warm-up.
_base_ = './upernet_swin-t_adamw_b1024_5k_ade20k-512x512.py'
optim_wrapper = dict(type='AGVMOptimWrapper')
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=415))
