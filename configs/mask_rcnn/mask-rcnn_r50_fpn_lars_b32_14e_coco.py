# LARS at total batch 32. Ours: lr 0.075 times the square root.
_base_ = './mask-rcnn_r50_fpn_sgd_b32_14e_coco.py'
optim_wrapper = dict(
    optimizer=dict(type='BaselineLARS', lr=0.075 * 32**0.5, trust_coefficient=0.001)
)
