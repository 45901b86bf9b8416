#!/usr/bin/env bash
# mmeval 0.2.1: MeanIoU of label maps in uint8, as PNG files have them, is wrong from 17 classes
# on: a perfect prediction of Cityscapes' 19 classes has an mIoU of 0.6.
#
# The confusion matrix counts number_of_classes * label + prediction in the type of the maps,
# and 19 * 18 + 18 is more than 255, so it wraps and lands in another cell. The documentation
# asks for arrays and names no type; there is no error and no warning, and maps of PyTorch in
# uint8 have the same. Seen: mIoU 0.59 and aAcc 0.684 for maps that equal the annotation, in
# which all classes have the same number of pixels; 1 and 1 with the same maps in int64. With
# 16 classes both are 1. Convert label maps to int64.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mmeval==0.2.1 numpy==2.4.6 scipy==1.17.1 \
    plum-dispatch==1.7.4 pyyaml==6.0.4 rich==15.0.0
cd "$folder"
cat > wrap.py <<'PYTHON'
import mmeval
import numpy as np


def perfect(classes, dtype):
    """Return mIoU and accuracy of an exact prediction with as many pixels of each class."""
    labels = np.repeat(np.arange(classes), 100).reshape(1, classes, 100).astype(dtype)
    result = mmeval.MeanIoU(num_classes=classes)(labels.copy(), labels)
    return round(float(result['mIoU']), 3), round(float(result['aAcc']), 3)


seen = {
    (classes, dtype): perfect(classes, dtype)
    for classes in (16, 19)
    for dtype in ('int64', 'uint8')
}
print(f'mmeval {mmeval.__version__}, numpy {np.__version__}: {seen}')
assert seen == {
    (16, 'int64'): (1.0, 1.0),
    (16, 'uint8'): (1.0, 1.0),
    (19, 'int64'): (1.0, 1.0),
    (19, 'uint8'): (0.59, 0.684),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore wrap.py
