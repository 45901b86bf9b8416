# SGD + AGVM at total batch 512. Numbers of the authors' released recipe, at the 14
# epochs of the paper's table.
_base_ = [
    '../_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_b512_14e.py',
    '../_base_/methods/agvm-sgd_clip.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(lr=0.16 * (512 / 128) ** 0.5), clip_window=(360, 560)
)
custom_hooks = [dict(type='VarianceSyncHook', interval=10, begin=560)]
