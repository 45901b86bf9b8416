# LARS at total batch 256. Ours: lr 0.075 times the square root; the authors' 920
# updates of warm-up.
_base_ = './mask-rcnn_r50_fpn_sgd_b256_14e_coco.py'
optim_wrapper = dict(
    optimizer=dict(type='BaselineLARS', lr=0.075 * 256**0.5, trust_coefficient=0.001)
)
