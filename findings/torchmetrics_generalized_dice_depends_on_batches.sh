#!/usr/bin/env bash
# torchmetrics 1.9.0: segmentation.GeneralizedDiceScore gives the same images another score if
# they come in other batches, as soon as an image lacks a class.
#
# A class has the weight 1 / volume^2, which is infinite where the class is absent, and is then
# replaced by the largest weight that a class has in the batch. A transposed table even makes
# that another class: the absent class 2 of the first of two images has the weight of class 1.
# So predictions of an absent class count by the sizes of other classes in other images, and
# not at all in a batch that has the class nowhere. Two images, each with a class predicted that
# is not there: 0.464 in one batch, and 0.601 in batches of one image. The score is a mean over
# images, which should not depend on batches. NumPy with these weights has both numbers.
# weight_type='simple' (1 / volume) has the same; 'linear' has one score. No warning, and the
# documentation does not name batches.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > batches.py <<'PYTHON'
import numpy as np
import torch
import torchmetrics
from torchmetrics.segmentation import GeneralizedDiceScore

CLASSES = 3
truth = np.zeros((2, 8, 8), np.int64)
truth[0, :4], truth[1, :2] = 1, 2
prediction = truth.copy()
prediction[0, :2], prediction[1, :3] = 2, 1


def metric(size, weight):
    """Return the score of torchmetrics with batches of a size."""
    score = GeneralizedDiceScore(CLASSES, weight_type=weight, input_format='index')
    for start in range(0, len(truth), size):
        part = slice(start, start + size)
        score.update(torch.from_numpy(prediction[part]), torch.from_numpy(truth[part]))
    return round(score.compute().item(), 4)


def numpy_score(power, together):
    """Return the mean score of the images, in one batch or in one each."""
    one_hot = [np.eye(CLASSES)[each].reshape(2, -1, CLASSES) for each in (truth, prediction)]
    volume, found = (each.sum(1) for each in one_hot)
    both = (one_hot[0] * one_hot[1]).sum(1)
    weights = np.where(volume > 0, 1.0 / np.maximum(volume, 1) ** power, 0)
    if together:
        largest = weights.max(0)
        for image, kind in np.argwhere(volume == 0):
            weights[image, kind] = largest[(image * CLASSES + kind) // len(truth)]
    scores = 2 * (weights * both).sum(1) / (weights * (volume + found)).sum(1)
    return round(float(scores.mean()), 4)


seen = {
    weight: [metric(size, weight) for size in (2, 1)]
    for weight in ('square', 'simple', 'linear')
}
print(f'torchmetrics {torchmetrics.__version__}: {seen}')
assert seen == {
    'square': [numpy_score(2, True), numpy_score(2, False)],
    'simple': [numpy_score(1, True), numpy_score(1, False)],
    'linear': [0.6875, 0.6875],
}, 'the behavior has changed'
assert seen['square'] == [0.4643, 0.601]
PYTHON
venv/bin/python -W ignore batches.py
