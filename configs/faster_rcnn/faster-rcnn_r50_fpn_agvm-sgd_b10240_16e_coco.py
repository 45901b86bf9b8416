# SGD + AGVM at total batch 10240. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 6 updates after the warm-up.
_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_b10240_16e.py',
    '../_base_/methods/agvm-sgd_clip.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(lr=0.16 * (10240 / 128) ** 0.5), clip_window=(18, 30)
)
custom_hooks = [
    dict(type='VarianceSyncHook', interval=1, begin=30, estimator='replicas')
]
