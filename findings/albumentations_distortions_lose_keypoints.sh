#!/usr/bin/env bash
# albumentations 2.0.8: distortions drop keypoints that lie on others, also with
# remove_invisible=False, so the joints of a person are no longer in their order.
#
# ElasticTransform, GridDistortion, OpticalDistortion, PiecewiseAffine and ThinPlateSpline paint
# each keypoint into a map as a small disc with its number, and read the first pixel of each
# number from the distorted map. What a later keypoint has painted over is gone, and COCO
# writes (0, 0) for every joint without a label: of 17 joints, 6 of them so, 12 come out, and the
# left wrist, the tenth, comes as the eighth, which is the left elbow. The first pixel is the
# top of the disc: a distortion of strength 0 moves all joints up by a pixel. No warning. Affine
# keeps all. keypoint_remapping_method='direct' keeps all, too, where they were.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q albumentations==2.0.8 albucore==0.0.24 numpy==2.4.6 \
    opencv-python-headless==5.0.0.93
cd "$folder"
cat > joints.py <<'PYTHON'
import os

os.environ['NO_ALBUMENTATIONS_UPDATE'] = '1'

import albumentations
import numpy as np

# The 17 joints of COCO, from the nose to the right ankle; those at (0, 0) have no label.
JOINTS = [
    (60, 20), (0, 0), (64, 16), (0, 0), (68, 18), (52, 36), (76, 36), (44, 50), (84, 50),
    (40, 64), (88, 64), (54, 70), (72, 70), (0, 0), (0, 0), (0, 0), (0, 0),
]  # fmt: skip


def joints(transform):
    """Return the keypoints that come out of a transform."""
    augment = albumentations.Compose(
        [transform],
        keypoint_params=albumentations.KeypointParams('xy', remove_invisible=False),
        seed=0,
    )
    return augment(image=np.zeros((120, 160, 3), np.uint8), keypoints=JOINTS)['keypoints']


transforms = dict(
    Affine=albumentations.Affine(rotate=(10, 10), p=1),
    ElasticTransform=albumentations.ElasticTransform(alpha=0, p=1),
    GridDistortion=albumentations.GridDistortion(p=1),
    OpticalDistortion=albumentations.OpticalDistortion(p=1),
    PiecewiseAffine=albumentations.PiecewiseAffine(p=1),
    ThinPlateSpline=albumentations.ThinPlateSpline(scale_range=(0.05, 0.05), p=1),
)
seen = {name: len(joints(transform)) for name, transform in transforms.items()}
same = albumentations.ElasticTransform(alpha=0, p=1)
direct = albumentations.ElasticTransform(alpha=0, p=1, keypoint_remapping_method='direct')
moved = np.array(joints(same)).astype(int).tolist()
seen['wrist'] = JOINTS.index((40, 64)), moved.index([40, 63])
seen['direct'] = (np.array(joints(direct)) == JOINTS).all().item()
print(f'albumentations {albumentations.__version__}: {seen}')
assert seen == {
    'Affine': 17,
    'ElasticTransform': 12,
    'GridDistortion': 12,
    'OpticalDistortion': 12,
    'PiecewiseAffine': 12,
    'ThinPlateSpline': 12,
    'wrist': (9, 7),
    'direct': True,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore joints.py
