# SGD at total batch 1024. Ours: lr linear from 0.02 at 16.
_base_ = ['../_base_/models/sem-fpn_r50.py', '../_base_/schedules/ade20k_sgd.py']
train_cfg = dict(max_iters=5000, val_interval=500, total_batch_size=1024)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.02 * 1024 / 16))
param_scheduler = [
    dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False, end=395),
    dict(type='PolyLR', by_epoch=False, begin=395, end=5000, power=0.9, eta_min=0.0),
]
default_hooks = dict(checkpoint=dict(interval=500))
