# LARS at total batch 256. Ours: lr 0.075 times the square root; the authors' 920
# updates of warm-up.
_base_ = ['../_base_/models/mask-rcnn_r50_fpn.py', '../_base_/schedules/coco_sgd.py']
train_cfg = dict(max_epochs=14, total_batch_size=256)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(type='BaselineLARS', lr=0.075 * 256**0.5, trust_coefficient=0.001)
)
param_scheduler = [
    dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False, end=920),
    dict(type='MultiStepLR', by_epoch=True, end=14, milestones=[10, 12], gamma=0.1),
]
