_base_ = './faster-rcnn_r18_w16_fpn_sgd_b256_10e_digits.py'

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(
        type='PMDLAMB',
        lr=0.01,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        period=16,
        moment_decay=0.1,
    ),
    clip_grad=dict(max_norm=10),
)
