# SGD + AGVM at total batch 512. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 40 updates after the warm-up.
_base_ = './upernet_r50_sgd_b512_10k_ade20k-512x512.py'
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (512 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(750, 830),
)
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=830))
