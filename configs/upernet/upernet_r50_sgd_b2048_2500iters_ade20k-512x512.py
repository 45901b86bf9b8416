# SGD at total batch 2048. Ours: lr linear from 0.02 at 16.
_base_ = [
    '../_base_/models/upernet_r50.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_b2048_2500iters.py',
    '../_base_/methods/sgd.py',
    '../_base_/ade20k_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.02 * 2048 / 16))
