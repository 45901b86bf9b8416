# SGD + AGVM at total batch 1024. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 20 updates after the warm-up.
_base_ = [
    '../_base_/models/upernet_r50.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_b1024_5k.py',
    '../_base_/methods/agvm-sgd_clip.py',
    '../_base_/ade20k_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(lr=0.16 * (1024 / 128) ** 0.5), clip_window=(375, 415)
)
custom_hooks = [dict(type='VarianceSyncHook', interval=10, begin=415)]
