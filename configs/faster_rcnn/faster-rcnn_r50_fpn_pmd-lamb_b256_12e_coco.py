# PMD-LAMB at total batch 256. Ours: lr square root from 0.005 at 512; the authors' 920
# updates of warm-up; the moments decay every epoch, or every 1000 updates.
_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/schedules/coco_adamw.py',
]
train_cfg = dict(total_batch_size=256)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(
        type='PMDLAMB',
        lr=0.005 * (256 / 512) ** 0.5,
        weight_decay=0.01,
        moment_decay=0.1,
        period=459,
    )
)
param_scheduler = [
    dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False, end=920),
    dict(type='MultiStepLR', by_epoch=True, end=12, milestones=[8, 11], gamma=0.1),
]
