# PMD-LAMB at total batch 10240. Ours: lr square root from 0.005 at 512; the moments
# decay every epoch, or every 1000 updates.
_base_ = ['../_base_/models/retinanet_r18_fpn.py', '../_base_/schedules/coco_adamw.py']
train_cfg = dict(val_interval=4, total_batch_size=10240)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(
        type='PMDLAMB',
        lr=0.005 * (10240 / 512) ** 0.5,
        weight_decay=0.01,
        moment_decay=0.1,
        period=12,
    )
)
default_hooks = dict(checkpoint=dict(interval=4), logger=dict(interval=1))
