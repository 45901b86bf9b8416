# SGD + AGVM at total batch 512. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 100 updates after the warm-up.
_base_ = [
    '../_base_/models/panoptic-fpn_r50_fpn.py',
    '../_base_/datasets/coco_panoptic.py',
    '../_base_/schedules/coco_b512_14e.py',
    '../_base_/methods/agvm-sgd_clip.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(lr=0.16 * (512 / 128) ** 0.5), clip_window=(360, 560)
)
custom_hooks = [dict(type='VarianceSyncHook', interval=10, begin=560)]
