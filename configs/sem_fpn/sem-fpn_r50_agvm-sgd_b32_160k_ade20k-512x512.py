# SGD + AGVM at total batch 32. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 100 updates after the warm-up.
_base_ = [
    '../_base_/models/sem-fpn_r50.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_b32_160k.py',
    '../_base_/methods/agvm-sgd.py',
    '../_base_/ade20k_runtime.py',
]
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=0.02 * 32 / 16))
custom_hooks = [dict(type='VarianceSyncHook', interval=10, begin=12732)]
