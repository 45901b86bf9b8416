_base_ = [
    '../_base_/models/upernet_r18_w16.py',
    '../_base_/datasets/digits_semantic.py',
    '../_base_/schedules/digits_b256_10e.py',
    '../_base_/methods/adamw.py',
    '../_base_/digits_seg_runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=0.001), clip_grad=dict(max_norm=2))
