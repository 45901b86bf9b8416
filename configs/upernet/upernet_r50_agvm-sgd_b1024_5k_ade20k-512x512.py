# SGD + AGVM at total batch 1024. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 20 updates after the warm-up.
_base_ = ['../_base_/models/upernet_r50.py', '../_base_/schedules/ade20k_sgd.py']
train_cfg = dict(max_iters=5000, val_interval=500, total_batch_size=1024)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (1024 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(375, 415),
)
param_scheduler = [
    dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False, end=395),
    dict(type='PolyLR', by_epoch=False, begin=395, end=5000, power=0.9, eta_min=0.0),
]
default_hooks = dict(
    checkpoint=dict(interval=500),
    agvm=dict(type='VarianceSyncHook', interval=10, begin=415),
)
