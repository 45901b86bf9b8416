# SGD + AGVM at total batch 1024. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 58 updates after the warm-up.
_base_ = './mask-rcnn_r50_fpn_sgd_b1024_14e_coco.py'
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (1024 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(172, 288),
)
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=288))
