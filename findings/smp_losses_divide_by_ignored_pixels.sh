#!/usr/bin/env bash
# segmentation-models-pytorch 0.6.0: SoftCrossEntropyLoss and SoftBCEWithLogitsLoss divide by
# ignored pixels too, so an image that is half labeled has half of its loss.
#
# Both set the loss of pixels with ignore_index to 0 and then take the mean of all pixels. The
# cross entropy of torch, and that of MMSegmentation with avg_non_ignore=True, divide by the
# pixels that have a label. With 1/10 of the pixels labeled, the loss is a tenth, and an image
# pulls the less at the weights the less of it is labeled. FocalLoss of the same package
# divides by labeled pixels; without ignored pixels all numbers are equal.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 pillow==13.0.0 pyyaml==6.0.4 tqdm==4.70.1 \
    huggingface-hub==2.4.0 safetensors==0.8.0
# Installed without CUDA's torch, which torchvision's operators need; the losses use none.
"$folder/venv/bin/pip" install -q --no-deps torchvision==0.28.0 timm==1.0.31 \
    segmentation-models-pytorch==0.6.0
cd "$folder"
cat > losses.py <<'PYTHON'
import torch
from torch.nn import functional

try:
    import torchvision  # noqa: F401
except RuntimeError:  # This torch has no CUDA: name the operators that the import looks for.
    operators = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        operators.define(f'{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor')

from segmentation_models_pytorch import __version__
from segmentation_models_pytorch.losses import (
    FocalLoss,
    SoftBCEWithLogitsLoss,
    SoftCrossEntropyLoss,
)


def by_labeled(rows):
    """Return each loss by the mean over labeled pixels, if so many of ten rows have labels."""
    torch.manual_seed(0)
    scores, score = torch.randn(1, 4, 10, 10), torch.randn(1, 1, 10, 10)
    classes, binary = torch.randint(4, (1, 10, 10)), torch.randint(2, (1, 1, 10, 10)).float()
    entropy = functional.cross_entropy(scores[:, :, :rows], classes[:, :rows])
    binary_entropy = functional.binary_cross_entropy_with_logits(
        score[:, :, :rows], binary[:, :, :rows]
    )
    classes[:, rows:] = binary[:, :, rows:] = 255
    soft = SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=255)
    soft_binary = SoftBCEWithLogitsLoss(ignore_index=255)
    focal = FocalLoss('binary', gamma=0.0, ignore_index=255)
    return {
        'SoftCrossEntropyLoss': round((soft(scores, classes) / entropy).item(), 3),
        'SoftBCEWithLogitsLoss': round((soft_binary(score, binary) / binary_entropy).item(), 3),
        'FocalLoss': round((focal(score, binary) / binary_entropy).item(), 3),
    }


seen = {rows: by_labeled(rows) for rows in (10, 5, 1)}
print(f'segmentation-models-pytorch {__version__}: {seen}')
assert seen == {
    rows: {
        'SoftCrossEntropyLoss': rows / 10,
        'SoftBCEWithLogitsLoss': rows / 10,
        'FocalLoss': 1.0,
    }
    for rows in (10, 5, 1)
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore losses.py
