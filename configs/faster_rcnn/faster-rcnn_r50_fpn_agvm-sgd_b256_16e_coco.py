# SGD + AGVM at total batch 256. Numbers of the authors' released recipe.
_base_ = './faster-rcnn_r50_fpn_sgd_b256_16e_coco.py'
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.16 * (256 / 128) ** 0.5),
    clip_grad=dict(max_norm=1.0),
    clip_window=(820, 1020),
)
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=1020))
