# SGD + AGVM at total batch 2048. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 10 updates after the warm-up.
_base_ = [
    '../_base_/models/sem-fpn_r50.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_b2048_2500iters.py',
    '../_base_/methods/agvm-sgd_clip.py',
    '../_base_/ade20k_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(lr=0.16 * (2048 / 128) ** 0.5), clip_window=(188, 208)
)
custom_hooks = [dict(type='VarianceSyncHook', interval=5, begin=208)]
