# AdamW + AGVM at total batch 512. Ours: lr square root from 1e-4 at 16; AGVM begins 40
# updates after the warm-up.
_base_ = [
    '../_base_/models/upernet_swin-t.py',
    '../_base_/schedules/ade20k_adamw_swin.py',
]
train_cfg = dict(max_iters=10000, val_interval=1000, total_batch_size=512)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(
    type='AGVMOptimWrapper', optimizer=dict(lr=1e-4 * (512 / 16) ** 0.5)
)
param_scheduler = [
    dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False, end=790),
    dict(type='PolyLR', by_epoch=False, begin=790, end=10000, power=0.9, eta_min=0.0),
]
default_hooks = dict(
    checkpoint=dict(interval=1000),
    agvm=dict(type='VarianceSyncHook', interval=10, begin=830),
)
