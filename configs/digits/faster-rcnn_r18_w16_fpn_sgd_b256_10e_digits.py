_base_ = [
    '../_base_/models/faster-rcnn_r18_w16_fpn.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/digits_sgd_b256_10e.py',
    '../_base_/digits_runtime.py',
]
