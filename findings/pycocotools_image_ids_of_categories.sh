#!/usr/bin/env bash
# pycocotools 2.0.11: getImgIds(catIds=...) gives images that have all of the categories, where
# getAnnIds gives annotations of any of them; an empty list gives all images.
#
# A subset of COCO with cats and dogs is often made by both functions. Of six images, two have
# a cat, two a dog, one has both and one has a person: five images have a cat or a dog, with
# six annotations of these. getImgIds finds the one with both, and getAnnIds six annotations,
# four of them in images that the subset lacks. A name that is not there, such as Cat for cat,
# gives an empty list of categories, and then all six images. No error and no warning. Take
# the images from the annotations, or the union over single categories.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 pycocotools==2.0.11
cd "$folder"
cat > subset.py <<'PYTHON'
import contextlib
import io
from importlib.metadata import version

from pycocotools.coco import COCO

NAMES = {1: 'person', 17: 'cat', 18: 'dog'}
IMAGES = {1: [17], 2: [17], 3: [18], 4: [18], 5: [17, 18], 6: [1]}
pairs = [(image, category) for image, categories in IMAGES.items() for category in categories]
with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO()
    coco.dataset = dict(
        images=[dict(id=image) for image in IMAGES],
        categories=[dict(id=category, name=name) for category, name in NAMES.items()],
        annotations=[
            dict(id=index, image_id=image, category_id=category)
            for index, (image, category) in enumerate(pairs, 1)
        ],
    )
    coco.createIndex()
both = coco.getCatIds(catNms=['cat', 'dog'])
annotations = coco.loadAnns(coco.getAnnIds(catIds=both))
images = coco.getImgIds(catIds=both)
seen = {
    'cat or dog': len({each['image_id'] for each in annotations}),
    'getImgIds': len(images),
    'getAnnIds': len(annotations),
    'outside of the images': sum(each['image_id'] not in images for each in annotations),
    'getImgIds of Cat': len(coco.getImgIds(catIds=coco.getCatIds(catNms=['Cat']))),
}
print(f'pycocotools {version("pycocotools")}: {seen}')
assert seen == {
    'cat or dog': 5,
    'getImgIds': 1,
    'getAnnIds': 6,
    'outside of the images': 4,
    'getImgIds of Cat': 6,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore subset.py
