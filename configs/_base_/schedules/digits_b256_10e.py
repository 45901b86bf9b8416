# 10 epochs of 4096 images at a total batch of 256, on any number of processes: one
# iteration is one update of the weights, an epoch has 16 of them. The method and the
# learning rate are elsewhere.
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
