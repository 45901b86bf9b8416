# SGD at total batch 32. Ours: lr linear from 0.02 at 16.
_base_ = ['../_base_/models/faster-rcnn_r50_fpn.py', '../_base_/schedules/coco_sgd.py']
train_cfg = dict(max_epochs=16, total_batch_size=32)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=0.02 * 32 / 16))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='MultiStepLR', by_epoch=True, end=16, milestones=[12, 14], gamma=0.1),
]
