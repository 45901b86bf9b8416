# SGD + AGVM at total batch 2048. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 10 updates after the warm-up.
_base_ = ['../_base_/models/sem-fpn_r50.py', '../_base_/schedules/ade20k_sgd.py']
train_cfg = dict(max_iters=2500, val_interval=250, total_batch_size=2048)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (2048 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(188, 208),
)
param_scheduler = [
    dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False, end=198),
    dict(type='PolyLR', by_epoch=False, begin=198, end=2500, power=0.9, eta_min=0.0),
]
default_hooks = dict(
    checkpoint=dict(interval=250),
    logger=dict(interval=10),
    agvm=dict(type='VarianceSyncHook', interval=5, begin=208),
)
