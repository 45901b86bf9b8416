#!/usr/bin/env bash
# mmsegmentation 1.2.2 with torch 2.13.0: on a CPU, IoUMetric stops counting at 16,777,216
# pixels of a class in an image, so a tile of 6000 x 6000 pixels has a wrong IoU.
#
# It counts with torch.histc of float32 numbers, which counts in float32: one more than 2^24
# is 2^24 again. Each thread counts by itself, so two threads stop at twice as much; a worker
# of torchrun has one. All pixels of the tile are of class 0, and half of them are predicted
# so: an IoU of 18 of 36 million, 50%. Seen: 100%, for 18 and 36 million are both 2^24. The
# accuracy of the class, also 50%, is 100%. A tile of 4000 x 4000 pixels is right. Reported
# in 2021 as issue 523 of mmsegmentation; the last release has it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 opencv-python-headless==5.0.0.93 \
    mmengine==0.10.7 prettytable==3.18.0 ftfy==6.3.1 regex==2026.11.19 scipy==1.17.1 setuptools==80.10.2
# mmcv-lite is mmcv without its compiled operators, which the metric does not use.
"$folder/venv/bin/pip" install -q --no-deps mmcv-lite==2.1.0 mmsegmentation==1.2.2
cd "$folder"
cat > tile.py <<'PYTHON'
import mmseg
import torch
from mmseg.evaluation import IoUMetric

torch.set_num_threads(1)


def of_metric(truth, prediction):
    """Return the IoU and the accuracy of class 0 in percent."""
    metric = IoUMetric(iou_metrics=['mIoU'])
    areas = metric.intersect_and_union(prediction, truth, 2, 255)
    scores = metric.total_area_to_metrics(*areas, metrics=['mIoU'])
    return [round(float(scores[name][0]) * 100) for name in ('IoU', 'Acc')]


def of_booleans(truth, prediction):
    """Return the same, counted in integers."""
    both = ((truth == 0) & (prediction == 0)).sum().item()
    either = ((truth == 0) | (prediction == 0)).sum().item()
    return [round(100 * both / of) for of in (either, (truth == 0).sum().item())]


seen = {}
for size in (4000, 6000):
    truth = torch.zeros(size, size, dtype=torch.uint8)
    prediction = truth.clone()
    prediction[: size // 2] = 1
    seen[size] = of_metric(truth, prediction), of_booleans(truth, prediction)
print(f'mmseg {mmseg.__version__}, torch {torch.__version__}: {seen}')
assert seen == {
    4000: ([50, 50], [50, 50]),
    6000: ([100, 100], [50, 50]),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore tile.py | tail -n 1
