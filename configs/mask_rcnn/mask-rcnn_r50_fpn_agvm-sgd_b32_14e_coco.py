# SGD + AGVM at total batch 32. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 100 updates after the warm-up.
_base_ = ['../_base_/models/mask-rcnn_r50_fpn.py', '../_base_/schedules/coco_sgd.py']
train_cfg = dict(max_epochs=14, total_batch_size=32)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(type='AGVMOptimWrapper', optimizer=dict(lr=0.02 * 32 / 16))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='MultiStepLR', by_epoch=True, end=14, milestones=[10, 12], gamma=0.1),
]
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=7430))
