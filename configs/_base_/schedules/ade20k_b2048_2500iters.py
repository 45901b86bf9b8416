# 2500 updates at total batch 2048, as many images as 160000 updates at 32. Warm-up for
# 20 of 253 epochs.
train_cfg = dict(
    type='LargeBatchIterTrainLoop',
    max_iters=2500,
    val_interval=250,
    total_batch_size=2048,
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(
        type='ExponentialWarmupLR',
        start_factor=0.001,
        by_epoch=False,
        begin=0,
        end=198,
    ),
    dict(
        type='PolyLR',
        by_epoch=False,
        begin=198,
        end=2500,
        power=0.9,
        eta_min=0.0,
    ),
]

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', by_epoch=False, interval=250),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
