# SGD at total batch 256. Ours: lr linear from 0.02 at 16; the authors' 920 updates of
# warm-up.
_base_ = ['../_base_/models/faster-rcnn_r50_fpn.py', '../_base_/schedules/coco_sgd.py']
train_cfg = dict(max_epochs=16, total_batch_size=256)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.02 * 256 / 16))
param_scheduler = [
    dict(type='ExponentialWarmupLR', start_factor=0.001, by_epoch=False, end=920),
    dict(type='MultiStepLR', by_epoch=True, end=16, milestones=[12, 14], gamma=0.1),
]
