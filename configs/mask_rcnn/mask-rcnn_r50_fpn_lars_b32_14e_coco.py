# LARS at total batch 32. Ours: lr 0.075 times the square root.
_base_ = [
    '../_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_b32_14e.py',
    '../_base_/methods/lars.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=0.075 * 32**0.5))
