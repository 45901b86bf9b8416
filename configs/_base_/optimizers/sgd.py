# The leaf gives the learning rate.
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', momentum=0.9, weight_decay=1e-4)
)
