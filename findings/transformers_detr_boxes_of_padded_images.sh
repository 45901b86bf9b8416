#!/usr/bin/env bash
# transformers 5.24.0: of an image that DetrImageProcessor pads, the boxes of the labels are
# parts of the padded image, and post_process_object_detection takes them for parts of the image.
#
# A batch has the size of its largest image, with the others in the upper left corner. Boxes to
# learn are divided by the size of the batch (DETR itself divides by that of the image, before
# padding). Outputs are multiplied by the size of the image, which is what target_sizes is
# documented to be. So a model that predicts all of its labels exactly is right alone, and wrong
# in a batch: an image of 100 x 100 pixels with a box at 20 to 60 has it there, but at 10 to 30
# beside an image of 100 x 200. COCO's average recall of exact outputs is 1 with batches of one
# image and 0.5 with both in one. No warning. Give the size of the batch as target_sizes, in
# pixels of the original image, or batches of one image.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0 torch==2.13.0 numpy==2.4.6 \
    pillow==13.0.0 pycocotools==2.0.11
cd "$folder"
cat > pad.py <<'PYTHON'
import contextlib
import io
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

SIZES = [(100, 100), (100, 200)]  # heights and widths
BOX = [20, 20, 40, 40]
processor = DetrImageProcessorPil(size={'shortest_edge': 100, 'longest_edge': 200})


def predict(indices):
    """Return the boxes of a model whose outputs are its labels, for a batch of images."""
    labels = processor(
        images=[np.zeros((*SIZES[index], 3), np.uint8) for index in indices],
        annotations=[
            dict(
                image_id=index,
                annotations=[dict(image_id=index, category_id=1, bbox=BOX, area=1600, iscrowd=0)],
            )
            for index in indices
        ],
        return_tensors='pt',
    )['labels']
    outputs = SimpleNamespace(
        pred_boxes=torch.stack([each['boxes'] for each in labels]),
        logits=torch.tensor([[[0.0, 9.0, 0.0]]] * len(indices)),
    )
    sizes = [SIZES[index] for index in indices]
    found = processor.post_process_object_detection(outputs, target_sizes=sizes)
    return [each['boxes'][0].round().int().tolist() for each in found]


def score(boxes):
    """Return COCO's average recall of a box in each image."""
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=index + 1, height=h, width=w) for index, (h, w) in enumerate(SIZES)],
        categories=[dict(id=1, name='object')],
        annotations=[
            dict(id=id, image_id=id, category_id=1, bbox=BOX, area=1600, iscrowd=0)
            for id in (1, 2)
        ],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = [
            dict(image_id=id, category_id=1, score=0.9, bbox=[l, t, r - l, b - t])
            for id, (l, t, r, b) in enumerate(boxes, 1)
        ]
        evaluation = COCOeval(truth, truth.loadRes(results), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(float(evaluation.stats[8]), 2)


alone = predict([0]) + predict([1])
together = predict([0, 1])
seen = {'alone': (alone, score(alone)), 'together': (together, score(together))}
print(f'transformers {transformers.__version__}: {seen}')
right = [20, 20, 60, 60]
assert seen == {
    'alone': ([right, right], 1.0),
    'together': ([[10, 20, 30, 60], right], 0.5),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore pad.py
