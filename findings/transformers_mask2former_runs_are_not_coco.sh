#!/usr/bin/env bash
# transformers 5.24.0: Mask2Former's post_process_instance_segmentation with
# return_coco_annotation=True has the background as first object, and no COCO runs.
#
# The list has runs for each number in the map of objects, of which -1, the background, is the
# first: runs and segments_info, in which each object has its score and class, do not match.
# The map has one object for each pixel, although the documentation names this argument for
# objects that overlap. COCO's counts go by columns and alternate between background and object;
# these are starts, from 1, and lengths, by rows. Seen with an object of 60 x 60 pixels and one
# of 30 x 30 upon it: three lists, of 143856 pixels (all but the objects), 2700 and 900, if read
# as pairs, where objects have 3600 and 900; pycocotools refuses all three. No warning.
# return_binary_maps=True gives the two masks.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0 torch==2.13.0 numpy==2.4.6 \
    pillow==13.0.0 pycocotools==2.0.11
cd "$folder"
cat > runs.py <<'PYTHON'
from types import SimpleNamespace

import torch
import transformers
from pycocotools import mask as rle
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)

SIDE = 384  # the size of all its maps
masks = torch.full((1, 2, SIDE, SIDE), -9.0)
masks[0, 0, 10:70, 10:70] = 9
masks[0, 1, 40:70, 40:70] = 9
outputs = SimpleNamespace(
    class_queries_logits=torch.tensor([[[9.0, 0.0, 0.0], [0.0, 8.0, 0.0]]]),
    masks_queries_logits=masks,
)


def process(**flags):
    """Return what the processor makes of two objects."""
    processor = Mask2FormerImageProcessorPil()
    [found] = processor.post_process_instance_segmentation(outputs, **flags)
    return found


def read(runs):
    """Return whether pycocotools takes runs for counts of a mask."""
    try:
        counts = [int(each) for each in runs]
        rle.decode(rle.frPyObjects(dict(size=[SIDE, SIDE], counts=counts), SIDE, SIDE))
        return True
    except ValueError:
        return False


whole = process(return_binary_maps=True)['segmentation']
found = process(return_coco_annotation=True)
seen = {
    'objects': len(found['segments_info']),
    'their pixels': [int(mask.sum()) for mask in whole],
    'pixels of runs': [int(sum(runs[1::2])) for runs in found['segmentation']],
    'read by pycocotools': [read(runs) for runs in found['segmentation']],
}
print(f'transformers {transformers.__version__}: {seen}')
assert seen == {
    'objects': 2,
    'their pixels': [3600, 900],
    'pixels of runs': [SIDE * SIDE - 3600, 2700, 900],
    'read by pycocotools': [False] * 3,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore runs.py
