# PMD-LAMB at total batch 1024. Ours: lr square root from 0.005 at 512; the moments
# decay every epoch, or every 1000 updates.
_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/schedules/coco_adamw.py',
]
train_cfg = dict(total_batch_size=1024)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(
        type='PMDLAMB',
        lr=0.005 * (1024 / 512) ** 0.5,
        weight_decay=0.01,
        moment_decay=0.1,
        period=115,
    )
)
default_hooks = dict(logger=dict(interval=10))
