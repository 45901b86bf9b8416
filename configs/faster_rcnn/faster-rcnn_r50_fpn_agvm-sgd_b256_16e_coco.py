# SGD + AGVM at total batch 256. Numbers of the authors' released recipe.
_base_ = ['../_base_/models/faster-rcnn_r50_fpn.py', '../_base_/schedules/coco_sgd.py']
train_cfg = dict(max_epochs=16, total_batch_size=256)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (256 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(820, 1020),
)
param_scheduler = [
    dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False, end=920),
    dict(type='MultiStepLR', by_epoch=True, end=16, milestones=[12, 14], gamma=0.1),
]
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=1020))
