# PMD-LAMB at total batch 1536. Ours: lr square root from 0.005 at 512; the moments
# decay every epoch, or every 1000 updates.
_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_b1536_12e.py',
    '../_base_/methods/pmd-lamb.py',
    '../_base_/coco_runtime.py',
]
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=0.005 * (1536 / 512) ** 0.5, period=77))
