# SGD + AGVM at total batch 10240. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 6 updates after the warm-up.
_base_ = ['../_base_/models/mask-rcnn_r50_fpn.py', '../_base_/schedules/coco_sgd.py']
train_cfg = dict(max_epochs=14, val_interval=4, total_batch_size=10240)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (10240 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(18, 30),
)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='MultiStepLR', by_epoch=True, end=14, milestones=[10, 12], gamma=0.1),
]
default_hooks = dict(
    checkpoint=dict(interval=4),
    logger=dict(interval=1),
    agvm=dict(type='VarianceSyncHook', interval=1, begin=30, estimator='replicas'),
)
