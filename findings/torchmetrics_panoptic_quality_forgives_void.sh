#!/usr/bin/env bash
# torchmetrics 1.9.0: PanopticQuality forgives every object that the prediction leaves empty.
#
# The metric of Kirillov et al. ignores pixels that are void in the ground truth. The class
# also ignores those that are void in the prediction: an object without any prediction is no
# false negative, and the part of an object that its prediction misses does not count in the
# union. With two objects of one category, of which one is predicted and the other is left
# void, the PQ is 1; with a prediction of 60 of an object's 100 pixels it is 1, too.
# panopticapi, the evaluation of COCO, gives 2/3 and 0.6 for the same maps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6 pillow==13.0.0
"$folder/venv/bin/pip" install -q --no-deps panopticapi-lite==0.2.0
cd "$folder"
cat > quality.py <<'PYTHON'
from pathlib import Path

import numpy as np
import torch
from panopticapi.evaluation import pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image
from torchmetrics import __version__
from torchmetrics.detection import PanopticQuality

THING, VOID = 1, 9


def of_torchmetrics(truth, prediction):
    """Return the PQ of maps of segments, in which 0 is void."""
    metric = PanopticQuality(things={THING}, stuffs={2}, allow_unknown_preds_category=True)
    maps = [
        torch.from_numpy(np.stack([np.where(each, THING, VOID), each], -1))[None]
        for each in (prediction, truth)
    ]
    return round(float(metric(*maps)), 4)


def of_panopticapi(truth, prediction):
    """Return the PQ of the same maps."""
    annotations = []
    for folder, each in (('truth', truth), ('prediction', prediction)):
        Path(folder).mkdir(exist_ok=True)
        Image.fromarray(id2rgb(each)).save(f'{folder}/1.png')
        segments = [
            dict(id=int(n), category_id=THING, iscrowd=0, area=int((each == n).sum()))
            for n in np.unique(each)
            if n
        ]
        annotations.append(dict(file_name='1.png', image_id=1, segments_info=segments))
    categories = {THING: dict(id=THING, isthing=1)}
    stat = pq_compute_single_core(0, [annotations], 'truth', 'prediction', categories)
    result, _ = stat.pq_average(categories, isthing=None)
    return round(float(result['pq']), 4)


truth = np.zeros((10, 40), np.int64)
truth[:, :10], truth[:, 20:30] = 1, 2
missed = np.where(truth == 1, 1, 0)
part = np.where(truth == 1, 1, 0)
part[6:] = 0
one = np.where(truth == 1, 1, 0)
seen = {
    'one of two objects': (of_torchmetrics(truth, missed), of_panopticapi(truth, missed)),
    '60 of 100 pixels': (of_torchmetrics(one, part), of_panopticapi(one, part)),
}
print(f'torchmetrics {__version__}, panopticapi-lite 0.2.0: {seen}')
assert seen == {
    'one of two objects': (1.0, 0.6667),
    '60 of 100 pixels': (1.0, 0.6),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore quality.py | tail -n 1
