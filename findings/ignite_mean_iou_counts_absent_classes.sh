#!/usr/bin/env bash
# pytorch-ignite 0.5.5: mIoU counts a class that is in no annotation and no prediction as missed.
#
# The union of such a class is empty, and its IoU becomes 0 by the 1e-15 that is added to the
# union; so does the coefficient of DiceCoefficient. A validation set, or a part of it, in which
# classes do not appear lowers the mean of a perfect model. The documentation gives |A and B| /
# |A or B|, which is not defined here, and says nothing of it; no warning. MMSegmentation's
# IoUMetric leaves such classes out, as the mean over classes with pixels does. Seen with 19
# classes of which 8 appear, and a perfect prediction: 0.4211, that is 8 / 19; right is 1.
# Average IoU(...) over the classes with pixels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pytorch-ignite==0.5.5 torch==2.13.0 numpy==2.4.6 packaging==26.3
cd "$folder"
cat > absent.py <<'PYTHON'
import ignite
import torch
from ignite.metrics import ConfusionMatrix, DiceCoefficient, IoU, mIoU

CLASSES, PRESENT = 19, 8

labels = torch.arange(PRESENT).repeat_interleave(64).reshape(1, PRESENT, 64)
logits = torch.nn.functional.one_hot(labels, CLASSES).permute(0, 3, 1, 2).float()
assert torch.equal(logits.argmax(1), labels)
matrix = ConfusionMatrix(CLASSES)
mean, ious, dice = mIoU(matrix), IoU(matrix), DiceCoefficient(matrix)
matrix.update((logits, labels))
counts = matrix.compute()
have_pixels = counts.sum(0) + counts.sum(1) > 0
seen = {
    'mean IoU': round(float(mean.compute()), 4),
    'mean Dice': round(float(dice.compute().mean()), 4),
    'over classes with pixels': round(float(ious.compute()[have_pixels].mean()), 4),
}
print(f'pytorch-ignite {ignite.__version__}, torch {torch.__version__}: {seen}')
assert seen == {
    'mean IoU': round(PRESENT / CLASSES, 4),
    'mean Dice': round(PRESENT / CLASSES, 4),
    'over classes with pixels': 1.0,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore absent.py
