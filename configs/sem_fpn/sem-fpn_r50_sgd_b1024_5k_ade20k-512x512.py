# SGD at total batch 1024. Ours: lr linear from 0.02 at 16.
_base_ = [
    '../_base_/models/sem-fpn_r50.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_b1024_5k.py',
    '../_base_/methods/sgd.py',
    '../_base_/ade20k_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.02 * 1024 / 16))
