# mask-rcnn_r50_fpn.py with Swin-T.
_base_ = './mask-rcnn_r50_fpn.py'

# ImageNet-1K weights of the Swin Transformer's authors.
swin_t = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth'  # noqa: E501

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        mlp_ratio=4,
        qkv_bias=True,
        drop_path_rate=0.2,
        patch_norm=True,
        out_indices=(0, 1, 2, 3),
        convert_weights=True,
        init_cfg=dict(type='Pretrained', checkpoint=swin_t),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
