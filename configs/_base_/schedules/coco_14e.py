# 14 epochs of COCO with SGD; the first 2 are warm-up. The leaf gives the total batch
# size and the learning rate.
_base_ = 'mmdet::_base_/default_runtime.py'
custom_imports = dict(imports=['agvm_mm'])

train_cfg = dict(type='LargeBatchTrainLoop', max_epochs=14, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', momentum=0.9, weight_decay=1e-4)
)
param_scheduler = [
    dict(
        type='ExponentialWarmupLR',
        start_factor=0.001,
        by_epoch=True,
        convert_to_iter_based=True,
        end=2,
    ),
    dict(type='MultiStepLR', by_epoch=True, end=14, milestones=[10, 12], gamma=0.1),
]

default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook'))
