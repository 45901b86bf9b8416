# AdamW at total batch 10240. Ours: lr square root from 1e-4 at 16.
_base_ = [
    '../_base_/models/upernet_swin-t.py',
    '../_base_/schedules/ade20k_adamw_swin.py',
]
train_cfg = dict(max_iters=500, val_interval=50, total_batch_size=10240)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-4 * (10240 / 16) ** 0.5))
param_scheduler = [
    dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False, end=40),
    dict(type='PolyLR', by_epoch=False, begin=40, end=500, power=0.9, eta_min=0.0),
]
default_hooks = dict(checkpoint=dict(interval=50), logger=dict(interval=10))
