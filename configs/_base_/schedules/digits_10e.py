# 10 epochs of 4096 images at total batch size 256, on any number of processes: 16
# updates per epoch. The leaf gives the optimizer.
custom_imports = dict(imports=['agvm_mm', 'demo.detection'])
default_scope = 'mmdet'

train_cfg = dict(
    type='LargeBatchTrainLoop', max_epochs=10, val_interval=5, total_batch_size=256
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    # 3 epochs of warm-up
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=48),
    dict(
        type='MultiStepLR', by_epoch=True, begin=0, end=10, milestones=[7, 9], gamma=0.1
    ),
]

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=2),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # Averages BatchNorm's running statistics over the ranks: the evaluated model is the
    # one in the checkpoint.
    sync_buffers=dict(type='SyncBuffersHook'),
    visualization=dict(type='DetVisualizationHook'),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer'
)
log_processor = dict(type='LogProcessor', window_size=4, by_epoch=True)
randomness = dict(seed=0)

log_level = 'INFO'
load_from = None
resume = False
