# LARS from `pip install pytorch-optimizer`. The leaf gives the learning rate.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='BaselineLARS', momentum=0.9, weight_decay=1e-4, trust_coefficient=1e-3
    ),
)
