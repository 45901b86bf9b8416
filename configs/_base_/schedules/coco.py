# 12 epochs of COCO; the first 2 are warm-up. The leaf gives the total batch size and,
# for another length, max_epochs and param_scheduler.
_base_ = 'mmdet::_base_/default_runtime.py'
custom_imports = dict(imports=['agvm_mm'])

train_cfg = dict(type='LargeBatchTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(
        type='ExponentialWarmupLR',
        start_factor=0.001,
        by_epoch=True,
        convert_to_iter_based=True,
        end=2,
    ),
    dict(type='MultiStepLR', by_epoch=True, end=12, milestones=[8, 11], gamma=0.1),
]

default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook'))
