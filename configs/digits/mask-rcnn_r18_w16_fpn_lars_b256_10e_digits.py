_base_ = [
    '../_base_/models/mask-rcnn_r18_w16_fpn.py',
    '../_base_/datasets/digits_instance.py',
    '../_base_/schedules/digits_10e.py',
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='BaselineLARS',
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        trust_coefficient=0.02,
    ),
    clip_grad=dict(max_norm=2),
)
