# SGD + AGVM at total batch 1024. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 58 updates after the warm-up.
_base_ = ['../_base_/models/faster-rcnn_r50_fpn.py', '../_base_/schedules/coco_sgd.py']
train_cfg = dict(max_epochs=16, total_batch_size=1024)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (1024 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(172, 288),
)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='MultiStepLR', by_epoch=True, end=16, milestones=[12, 14], gamma=0.1),
]
default_hooks = dict(
    logger=dict(interval=10), agvm=dict(type='VarianceSyncHook', interval=10, begin=288)
)
