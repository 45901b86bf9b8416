# SGD + AGVM at total batch 10240. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 6 updates after the warm-up.
_base_ = './mask-rcnn_r50_fpn_sgd_b10240_14e_coco.py'
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (10240 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(18, 30),
)
default_hooks = dict(
    agvm=dict(type='VarianceSyncHook', interval=1, begin=30, estimator='replicas')
)
