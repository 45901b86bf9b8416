# SGD + AGVM at total batch 1024. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 58 updates after the warm-up.
_base_ = [
    '../_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_b1024_14e.py',
    '../_base_/methods/agvm-sgd_clip.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(lr=0.16 * (1024 / 128) ** 0.5), clip_window=(172, 288)
)
custom_hooks = [dict(type='VarianceSyncHook', interval=10, begin=288)]
