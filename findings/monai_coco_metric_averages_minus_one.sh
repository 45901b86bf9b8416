#!/usr/bin/env bash
# monai 1.6.1: the mAP of COCOMetric counts a class without objects as -1, so it is too low, and
# negative if there are several of them.
#
# pycocotools marks the precision of a class that has no object by -1 and leaves it out of the
# mean, and so does COCOMetric for the mean recall. Its mean precision is that of all classes:
# with one class whose objects are all found, and one, two or three that are not in the
# validation set, it is 0, -1/3 and -1/2. The mean recall is 1 each time, and pycocotools has 1
# for both. A single class has 1. The warning names the class and says nothing of the mean.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q monai==1.6.1 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > absent.py <<'PYTHON'
import logging

import monai
import numpy as np
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.data.box_utils import box_iou

logging.disable(logging.WARNING)
BOXES = np.array([[10.0, 10, 40, 40], [50, 50, 80, 80]])
LABELS = np.zeros(2, int)


def means(classes):
    """Return mean precision and recall of a class with objects and others without."""
    metric = COCOMetric([f'class {index}' for index in range(classes)], max_detection=(100,))
    matches = matching_batch(
        iou_fn=box_iou,
        iou_thresholds=metric.iou_thresholds,
        pred_boxes=[BOXES],
        pred_classes=[LABELS],
        pred_scores=[np.array([0.9, 0.8])],
        gt_boxes=[BOXES],
        gt_classes=[LABELS],
    )
    found = metric(matches)[0]
    names = [next(name for name in found if name.startswith(each)) for each in ('mAP', 'mAR')]
    return [round(float(found[name]), 2) for name in names]


seen = {classes: means(classes) for classes in (1, 2, 3, 4)}
print(f'monai {monai.__version__}: {seen}')
assert seen == {
    1: [1.0, 1.0],
    2: [0.0, 1.0],
    3: [-0.33, 1.0],
    4: [-0.5, 1.0],
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore absent.py
