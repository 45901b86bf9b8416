# LAMB at total batch 512. Ours: lr square root from 0.005 at 512.
_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_b512_12e.py',
    '../_base_/methods/lamb.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.005 * (512 / 512) ** 0.5))
