# SGD + AGVM at total batch 32. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 100 updates after the warm-up.
_base_ = ['../_base_/models/sem-fpn_r50.py', '../_base_/schedules/ade20k_sgd.py']
train_cfg = dict(max_iters=160000, val_interval=16000, total_batch_size=32)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(type='AGVMOptimWrapper', optimizer=dict(lr=0.02 * 32 / 16))
param_scheduler = [
    dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False, end=12632),
    dict(
        type='PolyLR', by_epoch=False, begin=12632, end=160000, power=0.9, eta_min=0.0
    ),
]
default_hooks = dict(
    checkpoint=dict(interval=16000),
    agvm=dict(type='VarianceSyncHook', interval=10, begin=12732),
)
