# ADE20K. MMSegmentation counts updates, not epochs: the leaf gives the total batch
# size, the number of updates, the intervals and the schedule of the learning rate. The
# warm-up takes 20 of about 253 epochs.
_base_ = 'mmseg::_base_/default_runtime.py'
custom_imports = dict(imports=['agvm_mm'])

train_cfg = dict(type='LargeBatchIterTrainLoop')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', by_epoch=False),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
log_processor = dict(type='LogProcessor', window_size=50)
