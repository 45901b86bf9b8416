# SGD + AGVM at total batch 2048. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 10 updates after the warm-up.
_base_ = './sem-fpn_r50_sgd_b2048_2500iters_ade20k-512x512.py'
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (2048 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(188, 208),
)
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=5, begin=208))
