# PMD-LAMB at total batch 10240. Ours: lr square root from 0.005 at 512; the moments
# decay every epoch, or every 1000 updates.
_base_ = './faster-rcnn_r50_fpn_adamw_b10240_12e_coco.py'
optim_wrapper = dict(
    optimizer=dict(
        type='PMDLAMB',
        lr=0.005 * (10240 / 512) ** 0.5,
        weight_decay=0.01,
        moment_decay=0.1,
        period=12,
    )
)
