_base_ = './mask-rcnn_r18_w16_fpn_sgd_b256_10e_digits.py'
optim_wrapper = dict(
    optimizer=dict(type='BaselineLARS', lr=0.1, trust_coefficient=0.02)
)
