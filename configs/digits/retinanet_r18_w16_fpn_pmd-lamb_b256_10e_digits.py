_base_ = './retinanet_r18_w16_fpn_adamw_b256_10e_digits.py'
optim_wrapper = dict(
    optimizer=dict(
        type='PMDLAMB', lr=0.01, weight_decay=0.01, period=16, moment_decay=0.1
    )
)
