#!/usr/bin/env bash
# mmcv 2.1.0: fuse_conv_bn changes what RTMDet predicts: it folds three BatchNorms into one
# convolution.
#
# RTMDet's head has the same convolutions at each of its levels and a BatchNorm of its own at each.
# The function folds each BatchNorm into the convolution before it, and does not notice that the
# convolution has been folded for another level; the levels then share the product of all three.
# Seen for rtmdet_tiny with random weights and statistics: backbone and neck agree with the model
# before to 1e-5, class scores and distances of all levels are off by 0.47 to 1.3 of their
# largest value. RetinaNet's head with the stock ResNet stays the same. mmdet's benchmark script
# times the fused model (`--fuse-conv-bn`), which does not show it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 opencv-python-headless==5.0.0.93 \
    mmengine==0.10.7 pycocotools==2.0.11 scipy==1.17.1 shapely==2.2.0 six==1.17.0 \
    terminaltables==3.1.10 tqdm==4.70.1 setuptools==80.10.2
"$folder/venv/bin/pip" install -q --no-deps mmcv-lite==2.1.0 mmdet==3.3.0
cd "$folder"
cat > fuse.py <<'PYTHON'
import copy
import sys
import types
from pathlib import Path

# The compiled operators, which neither model uses before its results are selected.
operators = types.ModuleType('mmcv._ext')
operators.__getattr__ = lambda name: name
sys.modules['mmcv._ext'] = operators

import mmcv
import mmdet
import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch.nn.modules.batchnorm import _BatchNorm

CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
register_all_modules()


def difference(config):
    """Return by how much fusing changes the outputs of neck and head, relative to the largest."""
    cfg = Config.fromfile(CONFIGS / config)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    image = torch.rand(1, 3, 64, 64)
    found = []
    with torch.no_grad():
        for each in (copy.deepcopy(model), fuse_conv_bn(model)):
            features = each.extract_feat(image)
            found.append((features, *each.bbox_head(features)))
    apart = [
        [((a - b).abs().max() / a.abs().max()).item() for a, b in zip(before, after)]
        for before, after in zip(*found)
    ]
    neck, *head = apart
    return max(neck), min(map(min, head)), max(map(max, head))


rtmdet = difference('rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
retinanet = difference('retinanet/retinanet_r50_fpn_1x_coco.py')
print(f'mmcv {mmcv.__version__}, mmdet {mmdet.__version__}; neck, least and most of the head:')
print('RTMDet', *(f'{each:.1e}' for each in rtmdet))
print('RetinaNet', *(f'{each:.1e}' for each in retinanet))
assert rtmdet[0] < 1e-5 and rtmdet[1] > 0.25, 'the behavior has changed'
assert max(retinanet) < 1e-4, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore fuse.py
