# Scenes of handwritten digits with label maps, written by `python -m demo.data`:
# ten digits, and the textures as one class of background. Learning to distinguish
# plain, striped, checked and blobbed background takes longer than these runs.
dataset_type = 'DigitsSegDataset'
data_root = 'data/digits/'

# No flips: a mirrored digit has another shape.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_pipeline = train_pipeline
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        textures=False,
        data_root=data_root,
        data_prefix=dict(img_path='train/', seg_map_path='annotations/semantic_train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        textures=False,
        data_root=data_root,
        data_prefix=dict(img_path='val/', seg_map_path='annotations/semantic_val/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
