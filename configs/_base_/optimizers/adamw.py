# The leaf gives the learning rate. LAMB and PMD-LAMB replace the type.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), weight_decay=0.05),
)
