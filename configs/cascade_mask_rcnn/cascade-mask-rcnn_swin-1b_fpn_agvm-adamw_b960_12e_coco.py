# AdamW + AGVM at total batch 960. Ours: lr square root from 1e-4 at 16; AGVM begins 62
# updates after the warm-up.
_base_ = [
    '../_base_/models/cascade-mask-rcnn_swin-1b_fpn.py',
    '../_base_/schedules/coco_adamw_swin.py',
]
train_cfg = dict(total_batch_size=960)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=1e-4 * (960 / 16) ** 0.5),
    modules=dict(
        backbone=['backbone'],
        neck=['neck'],
        rpn_head=['rpn_head'],
        bbox_head=['roi_head.bbox_head'],
        mask_head=['roi_head.mask_head'],
    ),
)
default_hooks = dict(
    logger=dict(interval=10), agvm=dict(type='VarianceSyncHook', interval=10, begin=308)
)
