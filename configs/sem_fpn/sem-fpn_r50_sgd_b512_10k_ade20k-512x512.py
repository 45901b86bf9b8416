# SGD at total batch 512. Ours: lr linear from 0.02 at 16.
_base_ = ['../_base_/models/sem-fpn_r50.py', '../_base_/schedules/ade20k_sgd.py']
train_cfg = dict(max_iters=10000, val_interval=1000, total_batch_size=512)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.02 * 512 / 16))
param_scheduler = [
    dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False, end=790),
    dict(type='PolyLR', by_epoch=False, begin=790, end=10000, power=0.9, eta_min=0.0),
]
default_hooks = dict(checkpoint=dict(interval=1000))
