# SGD at total batch 1536. Ours: lr linear from 0.02 at 16.
_base_ = ['../_base_/models/faster-rcnn_r50_fpn.py', '../_base_/schedules/coco_sgd.py']
train_cfg = dict(max_epochs=16, val_interval=4, total_batch_size=1536)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=0.02 * 1536 / 16))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='MultiStepLR', by_epoch=True, end=16, milestones=[12, 14], gamma=0.1),
]
default_hooks = dict(checkpoint=dict(interval=4), logger=dict(interval=10))
