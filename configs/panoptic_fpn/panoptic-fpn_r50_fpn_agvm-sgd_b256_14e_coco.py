# SGD + AGVM at total batch 256. Ours: lr linear from 0.02 at 16 to 128, then square
# root; the authors' 920 updates of warm-up; AGVM begins 100 updates after the warm-up.
_base_ = './panoptic-fpn_r50_fpn_sgd_b256_14e_coco.py'
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (256 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(820, 1020),
)
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=1020))
