# LARS at total batch 512. Ours: lr 0.075 times the square root.
_base_ = ['../_base_/models/mask-rcnn_r50_fpn.py', '../_base_/schedules/coco_sgd.py']
train_cfg = dict(max_epochs=14, total_batch_size=512)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(type='BaselineLARS', lr=0.075 * 512**0.5, trust_coefficient=0.001)
)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='MultiStepLR', by_epoch=True, end=14, milestones=[10, 12], gamma=0.1),
]
