# SGD + AGVM at total batch 512. Numbers of the authors' released recipe.
_base_ = ['../_base_/models/faster-rcnn_r50_fpn.py', '../_base_/schedules/coco_sgd.py']
train_cfg = dict(max_epochs=16, total_batch_size=512)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.38),
    clip_grad=dict(max_norm=1.0),
    clip_window=(360, 560),
)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='MultiStepLR', by_epoch=True, end=16, milestones=[12, 14], gamma=0.1),
]
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=560))
