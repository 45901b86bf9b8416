# LARS at total batch 1024. Ours: lr 0.075 times the square root.
_base_ = ['../_base_/models/mask-rcnn_r50_fpn.py', '../_base_/schedules/coco_14e.py']
train_cfg = dict(total_batch_size=1024)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(type='BaselineLARS', lr=0.075 * 1024**0.5, trust_coefficient=0.001)
)
default_hooks = dict(logger=dict(interval=10))
