# Cascade Mask R-CNN with about one billion parameters, nearly all of them in a Swin
# Transformer twice as wide as Swin-L. The paper's UniNet-G is not in MMDetection. There
# are no pretrained weights of this size; set backbone.init_cfg to your own.
_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=384,
        depths=[2, 2, 24, 2],
        num_heads=[12, 24, 48, 96],
        window_size=12,
        mlp_ratio=4,
        qkv_bias=True,
        drop_path_rate=0.4,
        patch_norm=True,
        out_indices=(0, 1, 2, 3),
        # Recompute activations in the backward pass to save memory.
        with_cp=True,
    ),
    neck=dict(in_channels=[384, 768, 1536, 3072]),
)
