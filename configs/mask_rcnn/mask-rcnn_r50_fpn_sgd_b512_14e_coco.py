# SGD at total batch 512. Ours: lr linear from 0.02 at 16.
_base_ = ['../_base_/models/mask-rcnn_r50_fpn.py', '../_base_/schedules/coco_14e.py']
train_cfg = dict(total_batch_size=512)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.02 * 512 / 16))
