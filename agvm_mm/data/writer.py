"""Write the digits scenes as a COCO data set: PNG images and JSON annotations.

A folder is either complete or not there at all: everything is written into a
temporary folder beside it, which is renamed once the last byte is out.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock
from tqdm import tqdm

from agvm_mm.checks import check_number
from agvm_mm.data import scenes

SETTINGS_FILE = 'settings.json'
"""Its presence marks a finished folder; it holds the settings it was made with."""

# Raised whenever the same settings would give other files than before, so that a
# folder of an older version is written anew.
FORMAT_VERSION = 1


def write_digits(out, *, seed=0, num_train=4096, num_val=512, progress=True):
    """Write the train and validation scenes, unless they are there already.

    The result is ``{train,val}/<number>.png`` and
    ``annotations/instances_{train,val}.json``. A finished folder with other
    settings is replaced as a whole. An interrupted run leaves ``out`` as it was.

    Args:
        out (str or Path): Folder of the data set.
        seed (int): Seed of everything random, not negative.
        num_train (int): Number of training scenes.
        num_val (int): Number of validation scenes.
        progress (bool): Whether to show a progress bar.

    Returns:
        bool: True if the data was written, False if it was there.

    Raises:
        FileExistsError: If ``out`` holds something that this function did not
            write.
        TypeError: If a number is not a whole one.
        ValueError: If one is out of range.
    """
    settings = digits_settings(seed=seed, num_train=num_train, num_val=num_val)
    out = Path(out).absolute()
    if is_finished(out, settings):
        return False
    if out.exists() and not _is_ours(out):
        raise FileExistsError(
            f'{out} holds other files than the digits data. Remove it or choose '
            'another folder with --out'
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f'.{out.name}.partial-'
    with FileLock(out.parent / f'.{out.name}.lock'):
        if is_finished(out, settings):  # another process was faster
            return False
        # Under the lock nobody else writes: these are left from a killed run.
        for stale in out.parent.glob(f'{prefix}*'):
            shutil.rmtree(stale)
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
        try:
            partial.chmod(0o755)  # mkdtemp gives nobody else access
            _write_all(partial, settings, progress)
            if out.exists():
                # A folder cannot be replaced by a rename: move the old one away.
                out.rename(Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent)))
            partial.rename(out)
        finally:
            for leftover in out.parent.glob(f'{prefix}*'):
                shutil.rmtree(leftover)
    return True


def digits_settings(*, seed, num_train, num_val):
    """What a data folder is made from, as stored in :data:`SETTINGS_FILE`.

    Raises:
        TypeError: If an argument is not a whole number.
        ValueError: If one is out of range.
    """
    check_number('seed', seed, low=0, integer=True)
    check_number('num_train', num_train, low=1, integer=True)
    check_number('num_val', num_val, low=1, integer=True)
    return dict(
        format_version=FORMAT_VERSION,
        seed=seed,
        num_train=num_train,
        num_val=num_val,
        image_size=scenes.IMAGE_SIZE,
    )


def is_finished(out, settings=None):
    """Whether ``out`` holds finished data, made with ``settings`` if given."""
    found = read_settings(out)
    return found is not None and (settings is None or found == settings)


def read_settings(out):
    """The settings a finished folder was made with, or None if it is not one."""
    try:
        return json.loads((Path(out) / SETTINGS_FILE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


class InstanceAnnotations:
    """Collects COCO detection annotations: boxes and masks of the digits.

    Every kind of annotation is one such class: ``add`` takes the scenes one by
    one, ``save`` writes what belongs to the whole split.

    Args:
        out (Path): Folder of the data set.
        split (str): Name of the split.
    """

    def __init__(self, out, split):
        self._path = out / 'annotations' / f'instances_{split}.json'
        self._images = []
        self._annotations = []

    def add(self, file_name, scene):
        """Append one scene.

        Args:
            file_name (str): Name of its image, within the folder of the split.
            scene (scenes.Scene): The scene.
        """
        height, width = scene.instances.shape
        image_id = len(self._images) + 1
        self._images.append(
            dict(id=image_id, file_name=file_name, height=height, width=width)
        )
        for number, label in enumerate(scene.labels, start=1):
            self._annotations.append(
                dict(
                    id=len(self._annotations) + 1,
                    image_id=image_id,
                    category_id=category_id(label),
                    **describe_mask(scene.instances == number),
                    iscrowd=0,
                )
            )

    def save(self):
        """Write the JSON file."""
        self._path.parent.mkdir(exist_ok=True)
        content = dict(
            info=dict(description='Scenes of handwritten digits'),
            categories=[
                dict(id=category_id(label), name=name, supercategory='digit')
                for label, name in enumerate(scenes.CLASSES)
            ],
            images=self._images,
            annotations=self._annotations,
        )
        self._path.write_text(json.dumps(content))


def category_id(label):
    """COCO category of a class: 1 to 10, 0 is left for the background."""
    return label + 1


def describe_mask(mask):
    """Box, area and run-length encoding of a mask, as COCO stores them.

    Args:
        mask (np.ndarray): ``(H, W)``, bool, with at least one true pixel.

    Returns:
        dict: ``bbox`` (x, y, width, height of the tightest box, pixels),
        ``area`` (number of true pixels) and ``segmentation`` (compressed RLE
        with ``counts`` as str).
    """
    from pycocotools import mask as mask_utils

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        raise ValueError('the mask has no true pixel')
    y, x = int(rows[0]), int(columns[0])
    box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
    encoded = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return dict(
        bbox=box,
        area=int(mask.sum()),
        segmentation=dict(
            size=[int(side) for side in encoded['size']],
            counts=encoded['counts'].decode('ascii'),
        ),
    )


# A further kind of annotation (panoptic, semantic) is one more class here.
ANNOTATION_KINDS = (InstanceAnnotations,)


def _write_all(out, settings, progress):
    images, labels = scenes.load_digits()
    digits = scenes.split_digits(labels, settings['seed'])
    for split in scenes.SPLITS:
        folder = out / split
        folder.mkdir()
        kinds = [kind(out, split) for kind in ANNOTATION_KINDS]
        for index in tqdm(
            range(settings[f'num_{split}']),
            desc=f'{split} scenes',
            unit='scene',
            disable=not progress,
        ):
            scene = scenes.compose_scene(
                scenes.scene_rng(settings['seed'], split, index),
                images,
                labels,
                digits[split],
                size=settings['image_size'],
            )
            file_name = f'{index:06d}.png'
            bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
            if not cv2.imwrite(str(folder / file_name), bgr):
                raise OSError(f'{folder / file_name} could not be written')
            for kind in kinds:
                kind.add(file_name, scene)
        for kind in kinds:
            kind.save()
    (out / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + '\n')


def _is_ours(out):
    return is_finished(out) or (out.is_dir() and not os.listdir(out))
