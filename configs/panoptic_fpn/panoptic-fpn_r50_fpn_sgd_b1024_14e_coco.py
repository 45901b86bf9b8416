# SGD at total batch 1024. Ours: lr linear from 0.02 at 16.
_base_ = ['../_base_/models/panoptic-fpn_r50_fpn.py', '../_base_/schedules/coco_14e.py']
train_cfg = dict(total_batch_size=1024)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.02 * 1024 / 16))
default_hooks = dict(logger=dict(interval=10))
