# SGD + AGVM at total batch 1024. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 20 updates after the warm-up.
_base_ = './upernet_r50_sgd_b1024_5k_ade20k-512x512.py'
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (1024 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(375, 415),
)
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=415))
