# SGD + AGVM at total batch 256. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 79 updates after the warm-up.
_base_ = ['../_base_/models/upernet_r50.py', '../_base_/schedules/ade20k_sgd.py']
train_cfg = dict(max_iters=20000, val_interval=2000, total_batch_size=256)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (256 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(1500, 1658),
)
param_scheduler = [
    dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False, end=1579),
    dict(type='PolyLR', by_epoch=False, begin=1579, end=20000, power=0.9, eta_min=0.0),
]
default_hooks = dict(
    checkpoint=dict(interval=2000),
    agvm=dict(type='VarianceSyncHook', interval=10, begin=1658),
)
