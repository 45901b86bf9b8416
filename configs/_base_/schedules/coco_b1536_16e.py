# 16 epochs of 117,266 images at total batch 1536: 77 updates each, 1232 in all. Warm-up
# for 2 epochs.
train_cfg = dict(
    type='LargeBatchTrainLoop',
    max_epochs=16,
    val_interval=4,
    total_batch_size=1536,
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(
        type='ExponentialWarmupLR',
        start_factor=0.001,
        by_epoch=False,
        begin=0,
        end=154,
    ),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        begin=0,
        end=16,
        milestones=[12, 14],
        gamma=0.1,
    ),
]

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=10),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', interval=4),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
)
