"""Write the digits scenes: PNG images, and annotations for every task.

COCO's JSON for boxes and masks, COCO's panoptic JSON and maps, and label maps as
those of ADE20K, all of the same images. A folder is either complete or not there at
all: everything is written into a temporary folder beside it, which is renamed once
the last byte is out.
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

from agvm_mm.validation import check_number
from agvm_mm.digits import scenes

SETTINGS_FILE = 'settings.json'
"""Its presence marks a finished folder; it holds the settings it was made with."""

# Raised whenever the same settings would give other files than before, so that a
# folder of an older version is written anew.
FORMAT_VERSION = 2

STUFF_ID = 100
"""Segment of the background texture ``k`` in a panoptic map: ``STUFF_ID + k``."""


def write_digits(out, *, seed=0, num_train=4096, num_val=512, progress=True):
    """Write the train and validation scenes, unless they are there already.

    The result, for each split::

        <split>/<number>.png                         images
        annotations/instances_<split>.json           boxes and masks of the digits
        annotations/panoptic_<split>.json            segments: digits and textures
        annotations/panoptic_<split>/<number>.png    segment of each pixel
        annotations/semantic_<split>/<number>.png    class of each pixel

    A finished folder with other settings is replaced as a whole. An interrupted run
    leaves ``out`` as it was.

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
        image_id = len(self._images) + 1
        self._images.append(describe_image(image_id, file_name, scene))
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
        categories = [
            dict(id=category_id(label), name=name, supercategory='digit')
            for label, name in enumerate(scenes.CLASSES)
        ]
        _write_coco(self._path, categories, self._images, self._annotations)


class PanopticAnnotations:
    """Writes COCO panoptic annotations: each pixel is in one segment.

    Things are the visible digits, stuff is what is seen of each texture; nothing is
    left without a segment. A map holds segment ids as ``R + 256 G + 256^2 B``: those
    of ``Scene.instances`` for the digits, and :data:`STUFF_ID` and up for the
    textures.

    Args:
        out (Path): Folder of the data set.
        split (str): Name of the split.
    """

    def __init__(self, out, split):
        self._path = out / 'annotations' / f'panoptic_{split}.json'
        self._maps = _make_folder(self._path.with_suffix(''))
        self._images = []
        self._annotations = []

    def add(self, file_name, scene):
        """Append one scene and write its map.

        Args:
            file_name (str): Name of its image, and of its map.
            scene (scenes.Scene): The scene.
        """
        segments = np.where(
            scene.instances > 0, scene.instances, STUFF_ID + scene.textures
        )
        classes = scenes.class_map(scene)
        described = []
        for segment in np.unique(segments):
            mask = segments == segment
            # All pixels of a segment are of one class.
            label = int(classes[mask][0])
            described.append(
                dict(
                    id=int(segment),
                    category_id=category_id(label),
                    **describe_extent(mask),
                    iscrowd=0,
                )
            )
        image_id = len(self._images) + 1
        self._images.append(describe_image(image_id, file_name, scene))
        self._annotations.append(
            dict(image_id=image_id, file_name=file_name, segments_info=described)
        )
        # OpenCV writes BGR, and every id fits into red.
        bgr = np.zeros((*segments.shape, 3), np.uint8)
        bgr[..., 2] = segments
        _write_png(self._maps / file_name, bgr)

    def save(self):
        """Write the JSON file."""
        categories = [
            dict(
                id=category_id(label),
                name=name,
                supercategory='digit' if label < len(scenes.CLASSES) else 'texture',
                isthing=int(label < len(scenes.CLASSES)),
            )
            for label, name in enumerate(scenes.PIXEL_CLASSES)
        ]
        _write_coco(self._path, categories, self._images, self._annotations)


class SemanticAnnotations:
    """Writes label maps, as those of ADE20K: the class of each pixel.

    The values are indices in :data:`scenes.PIXEL_CLASSES`. Unlike ADE20K's they begin
    with a class at 0, and no pixel is to be ignored: ``reduce_zero_label=False``.

    Args:
        out (Path): Folder of the data set.
        split (str): Name of the split.
    """

    def __init__(self, out, split):
        self._maps = _make_folder(out / 'annotations' / f'semantic_{split}')

    def add(self, file_name, scene):
        """Write the map of one scene.

        Args:
            file_name (str): Name of its image, and of its map.
            scene (scenes.Scene): The scene.
        """
        _write_png(self._maps / file_name, scenes.class_map(scene))

    def save(self):
        """Nothing belongs to the whole split."""


def category_id(label):
    """COCO category of a class: from 1 on, 0 is left for what has none."""
    return label + 1


def describe_image(image_id, file_name, scene):
    """An entry of COCO's list of images."""
    height, width = scene.instances.shape
    return dict(id=image_id, file_name=file_name, height=height, width=width)


def describe_extent(mask):
    """Box and area of a mask, as COCO stores them.

    Args:
        mask (np.ndarray): ``(H, W)``, bool, with at least one true pixel.

    Returns:
        dict: ``bbox`` (x, y, width, height of the tightest box, pixels) and
        ``area`` (number of true pixels).

    Raises:
        ValueError: If no pixel is true.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        raise ValueError('the mask has no true pixel')
    y, x = int(rows[0]), int(columns[0])
    box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
    return dict(bbox=box, area=int(mask.sum()))


def describe_mask(mask):
    """Box, area and run-length encoding of a mask, as COCO stores them.

    Args:
        mask (np.ndarray): ``(H, W)``, bool, with at least one true pixel.

    Returns:
        dict: ``bbox`` and ``area`` of :func:`describe_extent`, and ``segmentation``
        (compressed RLE with ``counts`` as str).

    Raises:
        ValueError: If no pixel is true.
    """
    from pycocotools import mask as mask_utils

    extent = describe_extent(mask)
    encoded = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return dict(
        **extent,
        segmentation=dict(
            size=[int(side) for side in encoded['size']],
            counts=encoded['counts'].decode('ascii'),
        ),
    )


# A further kind of annotation is one more class here.
ANNOTATION_KINDS = (InstanceAnnotations, PanopticAnnotations, SemanticAnnotations)


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
            _write_png(folder / file_name, bgr)
            for kind in kinds:
                kind.add(file_name, scene)
        for kind in kinds:
            kind.save()
    (out / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + '\n')


def _make_folder(path):
    path.mkdir(parents=True)
    return path


def _write_png(path, pixels):
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f'{path} could not be written')


def _write_coco(path, categories, images, annotations):
    path.parent.mkdir(exist_ok=True)
    content = dict(
        info=dict(description='Scenes of handwritten digits'),
        categories=categories,
        images=images,
        annotations=annotations,
    )
    path.write_text(json.dumps(content))


def check_there(path, data_root):
    """Check that a file or a folder of the data has been made.

    Args:
        path (str): The file or folder.
        data_root (str or None): Folder of the data set, for the message.

    Raises:
        FileNotFoundError: If it is not there; the message holds the command that
            makes it.
    """
    if not os.path.exists(path):
        out = data_root or '<data_root>'
        raise FileNotFoundError(
            f'{path} is not there. Make the digits data first: '
            f'python -m agvm_mm.digits --out {out}'
        )


def _is_ours(out):
    return is_finished(out) or (out.is_dir() and not os.listdir(out))
