# SGD at total batch 1024. Ours: lr linear from 0.02 at 16.
_base_ = [
    '../_base_/models/panoptic-fpn_r50_fpn.py',
    '../_base_/datasets/coco_panoptic.py',
    '../_base_/schedules/coco_b1024_14e.py',
    '../_base_/methods/sgd.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.02 * 1024 / 16))
