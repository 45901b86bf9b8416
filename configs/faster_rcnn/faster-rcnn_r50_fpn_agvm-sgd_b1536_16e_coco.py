# SGD + AGVM at total batch 1536. Ours: lr linear from 0.02 at 16 to 128, then square
# root; AGVM begins 39 updates after the warm-up.
_base_ = './faster-rcnn_r50_fpn_sgd_b1536_16e_coco.py'
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (1536 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(115, 193),
)
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=5, begin=193))
