# AdamW at total batch 2048. Ours: lr square root from 1e-4 at 16.
_base_ = [
    '../_base_/models/upernet_swin-t.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_b2048_2500iters.py',
    '../_base_/methods/adamw_swin.py',
    '../_base_/ade20k_runtime.py',
]
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-4 * (2048 / 16) ** 0.5))
