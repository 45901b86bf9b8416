# Mask R-CNN of the AGVM authors' released recipe on COCO.
_base_ = ['./mask-rcnn_r50.py', 'mmdet::_base_/datasets/coco_instance.py']
