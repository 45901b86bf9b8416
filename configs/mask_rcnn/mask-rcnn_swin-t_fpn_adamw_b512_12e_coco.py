# AdamW at total batch 512. Ours: lr square root from 1e-4 at 16.
_base_ = [
    '../_base_/models/mask-rcnn_swin-t_fpn.py',
    '../_base_/schedules/coco_adamw_swin.py',
]
train_cfg = dict(total_batch_size=512)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-4 * (512 / 16) ** 0.5))
