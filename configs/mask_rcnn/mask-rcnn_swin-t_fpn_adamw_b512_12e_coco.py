# AdamW at total batch 512. Ours: lr square root from 1e-4 at 16.
_base_ = [
    '../_base_/models/mask-rcnn_swin-t_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_b512_12e.py',
    '../_base_/methods/adamw_swin.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-4 * (512 / 16) ** 0.5))
