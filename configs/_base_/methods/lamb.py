# LAMB from `pip install pytorch-optimizer`. The leaf gives the learning rate.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='BaselineLAMB', betas=(0.9, 0.999), weight_decay=0.01),
)
