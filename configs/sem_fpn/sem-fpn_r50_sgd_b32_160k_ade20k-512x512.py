# SGD at total batch 32. Ours: lr linear from 0.02 at 16.
_base_ = [
    '../_base_/models/sem-fpn_r50.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_b32_160k.py',
    '../_base_/methods/sgd.py',
    '../_base_/ade20k_runtime.py',
]
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=0.02 * 32 / 16))
