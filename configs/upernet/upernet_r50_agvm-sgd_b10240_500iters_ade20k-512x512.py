# SGD + AGVM at total batch 10240. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 2 updates after the warm-up.
_base_ = [
    '../_base_/models/upernet_r50.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_b10240_500iters.py',
    '../_base_/methods/agvm-sgd_clip.py',
    '../_base_/ade20k_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(lr=0.16 * (10240 / 128) ** 0.5), clip_window=(38, 42)
)
custom_hooks = [
    dict(type='VarianceSyncHook', interval=1, begin=42, estimator='replicas')
]
