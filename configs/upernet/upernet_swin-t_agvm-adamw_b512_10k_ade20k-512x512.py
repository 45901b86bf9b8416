# AdamW + AGVM at total batch 512. Ours: lr square root from 1e-4 at 16; AGVM begins 40
# updates after the warm-up.
_base_ = './upernet_swin-t_adamw_b512_10k_ade20k-512x512.py'
optim_wrapper = dict(type='AGVMOptimWrapper')
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=830))
