# PMD-LAMB: LAMB whose moments are decayed periodically. The leaf gives the learning
# rate and the period.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='PMDLAMB', betas=(0.9, 0.999), weight_decay=0.01, moment_decay=0.1
    ),
)
