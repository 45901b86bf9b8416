# AdamW + AGVM at total batch 256. Ours: lr square root from 1e-4 at 16; AGVM begins 79
# updates after the warm-up.
_base_ = [
    '../_base_/models/upernet_swin-t.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_b256_20k.py',
    '../_base_/methods/agvm-adamw_swin.py',
    '../_base_/ade20k_runtime.py',
]
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-4 * (256 / 16) ** 0.5))
custom_hooks = [dict(type='VarianceSyncHook', interval=10, begin=1658)]
