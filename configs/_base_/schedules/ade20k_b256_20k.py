# 20000 updates at total batch 256, as many images as 160000 updates at 32. Warm-up for
# 20 of 253 epochs.
train_cfg = dict(
    type='LargeBatchIterTrainLoop',
    max_iters=20000,
    val_interval=2000,
    total_batch_size=256,
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(
        type='ExponentialWarmupLR',
        start_factor=0.001,
        by_epoch=False,
        begin=0,
        end=1579,
    ),
    dict(
        type='PolyLR',
        by_epoch=False,
        begin=1579,
        end=20000,
        power=0.9,
        eta_min=0.0,
    ),
]

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', by_epoch=False, interval=2000),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
