# SGD + AGVM at total batch 512. Numbers of the authors' released recipe.
_base_ = './faster-rcnn_r50_fpn_sgd_b512_16e_coco.py'
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(lr=0.38),
    clip_grad=dict(max_norm=1.0),
    clip_window=(360, 560),
)
default_hooks = dict(agvm=dict(type='VarianceSyncHook', interval=10, begin=560))
