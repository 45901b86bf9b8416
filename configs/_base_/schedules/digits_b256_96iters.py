# 96 updates on a total batch of 256, on any number of processes: 6 epochs of 4096
# images. The method and the learning rate are elsewhere.
train_cfg = dict(
    type='LargeBatchIterTrainLoop', max_iters=96, val_interval=48, total_batch_size=256
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=24),
    dict(type='PolyLR', by_epoch=False, begin=24, end=96, power=0.9, eta_min=0.0),
]
