#!/usr/bin/env bash
# kornia 0.9.0: mean_iou gives an IoU of 1 to every class that is in neither map, so a
# prediction that is wrong at every pixel has a mean of 0.987 with 150 classes.
#
# Classes without a pixel have no IoU: the usual mean leaves them out, as MMSegmentation does
# with nan. An image of ADE20K has some ten of 150 classes. Two classes that are predicted
# the wrong way round have IoUs of 0, and a mean of 0; with the 148 that are not there it is
# 0.9867. The same maps with num_classes=2 have 0. torchmetrics 1.9.0 gives 0 for both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q kornia==0.9.0 torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > absent.py <<'PYTHON'
import kornia
import numpy as np
import torch
from kornia.metrics import mean_iou
from torchmetrics import __version__
from torchmetrics.classification import MulticlassJaccardIndex

truth = torch.zeros(1, 64, 64, dtype=torch.long)
truth[:, 32:] = 1
swapped = 1 - truth


def of_sets(prediction, classes):
    """Return the mean IoU of the classes that are in one of the maps."""
    scores = []
    for number in range(classes):
        first, second = (prediction == number).numpy(), (truth == number).numpy()
        if (first | second).any():
            scores.append((first & second).sum() / (first | second).sum())
    return float(np.mean(scores))


seen = {
    classes: {
        'kornia': round(mean_iou(swapped, truth, classes).mean().item(), 4),
        'torchmetrics': MulticlassJaccardIndex(classes)(swapped, truth).item(),
        'sets': of_sets(swapped, classes),
    }
    for classes in (2, 150)
}
print(f'kornia {kornia.__version__}, torchmetrics {__version__}: {seen}')
assert seen == {
    2: {'kornia': 0.0, 'torchmetrics': 0.0, 'sets': 0.0},
    150: {'kornia': 0.9867, 'torchmetrics': 0.0, 'sets': 0.0},
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore absent.py
