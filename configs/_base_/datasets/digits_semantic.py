# digits_detection.py with label maps: ten digits, and the textures as one class of
# background. Learning to distinguish plain, striped, checked and blobbed background
# takes longer than these runs.
_base_ = './digits_detection.py'
dataset_type = 'DigitsSegDataset'
data_root = 'data/digits/'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_pipeline = train_pipeline
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        textures=False,
        data_root=data_root,
        data_prefix=dict(img_path='train/', seg_map_path='annotations/semantic_train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        textures=False,
        data_root=data_root,
        data_prefix=dict(img_path='val/', seg_map_path='annotations/semantic_val/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(_delete_=True, type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
