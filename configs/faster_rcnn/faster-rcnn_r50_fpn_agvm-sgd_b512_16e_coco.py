# SGD + AGVM at total batch 512. Numbers of the authors' released recipe.
_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_b512_16e.py',
    '../_base_/methods/agvm-sgd_clip.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.38), clip_window=(360, 560))
custom_hooks = [dict(type='VarianceSyncHook', interval=10, begin=560)]
