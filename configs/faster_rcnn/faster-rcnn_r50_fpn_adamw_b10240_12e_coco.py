# AdamW at total batch 10240. Ours: lr square root from 1e-4 at 16.
_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_b10240_12e.py',
    '../_base_/methods/adamw.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=1e-4 * (10240 / 16) ** 0.5))
