#!/usr/bin/env bash
# torchmetrics 1.9.0: segmentation.MeanIoU averages the IoUs of single images, so a small
# object in one of them counts as much as all pixels of the class in the others.
#
# The mean IoU of ADE20K, Cityscapes and Pascal VOC divides the pixels of a class in all images
# by its union in all images, as MMSegmentation and MulticlassJaccardIndex of the same package
# do. Of ten images, nine have a class in 5000 of their pixels, all found, and the tenth in one
# pixel, which is missed. The IoU of the class is 45000 of 45001, and the mean IoU rounds to
# 1. Seen: 0.95, for the tenth image has an IoU of 0. The documentation does not name images.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > images.py <<'PYTHON'
import torch
from torchmetrics import __version__
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

truth = torch.zeros(10, 100, 100, dtype=torch.long)
truth[:9, :50] = 1
found = truth.clone()
truth[9, 0, 0] = 1
intersections = torch.tensor([((truth == k) & (found == k)).sum() for k in (0, 1)])
unions = torch.tensor([((truth == k) | (found == k)).sum() for k in (0, 1)])
whole, images = MulticlassJaccardIndex(num_classes=2), MeanIoU(num_classes=2, input_format='index')
for index in range(10):
    whole.update(found[index : index + 1], truth[index : index + 1])
    images.update(found[index : index + 1], truth[index : index + 1])
seen = {
    'MeanIoU': round(images.compute().item(), 3),
    'MulticlassJaccardIndex': round(whole.compute().item(), 3),
    'by hand': round((intersections / unions).mean().item(), 3),
}
print(f'torchmetrics {__version__}: {seen}')
assert seen == {
    'MeanIoU': 0.95,
    'MulticlassJaccardIndex': 1.0,
    'by hand': 1.0,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore images.py
