"""Writer of the digits scenes: PNG images, and annotations for every task.

COCO's JSON for boxes and masks, COCO's panoptic JSON and maps, and label maps like
those of ADE20K, all of the same images.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock
from tqdm import tqdm

from agvm_mm.training.atomic import replaced_when_whole
from agvm_mm.validation import check_number
from demo import scenes

SETTINGS_FILE = 'settings.json'
"""Marks a finished folder; holds the settings that it was written with."""

# Increase it when the same settings give other files than before, to replace the
# folders of older versions.
FORMAT_VERSION = 2

STUFF_ID = 100
"""Segment id of the background texture ``k`` in a panoptic map: ``STUFF_ID + k``."""


def write_digits(
    out: str | Path,
    *,
    seed: int = 0,
    num_train: int = 4096,
    num_val: int = 512,
    image_size: int = scenes.IMAGE_SIZE,
    progress: bool = True,
) -> bool:
    """Write the train and validation scenes, unless they exist already.

    The result, for each split::

        <split>/<number>.png                         images
        annotations/instances_<split>.json           boxes and masks of the digits
        annotations/panoptic_<split>.json            segments: digits and textures
        annotations/panoptic_<split>/<number>.png    segment of each pixel
        annotations/semantic_<split>/<number>.png    class of each pixel

    A finished folder with other settings is replaced as a whole. An interrupted run
    leaves ``out`` as it was.

    Args:
        out: Folder of the data set.
        seed: Random seed, not negative.
        num_train: Number of training scenes.
        num_val: Number of validation scenes.
        image_size: Side of a scene in pixels, at least that of the largest digit.
        progress: Whether to show a progress bar.

    Returns:
        True if the data was written, False if it existed already.

    Raises:
        FileExistsError: If ``out`` holds something that this function did not write.
        TypeError: If a number is not an integer.
        ValueError: If a number is out of range.
    """
    check_number('seed', seed, low=0, integer=True)
    check_number('num_train', num_train, low=1, integer=True)
    check_number('num_val', num_val, low=1, integer=True)
    check_number('image_size', image_size, low=scenes.DIGIT_HEIGHTS[1], integer=True)
    # Everything that the files depend on.
    settings = dict(
        format_version=FORMAT_VERSION,
        seed=seed,
        num_train=num_train,
        num_val=num_val,
        image_size=image_size,
    )
    out = Path(out).absolute()
    if read_json(out / SETTINGS_FILE) == settings:
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.parent / f'.{out.name}.lock'):
        found = read_json(out / SETTINGS_FILE)
        if found == settings:  # another process was faster
            return False
        if found is None and out.exists() and any(out.iterdir()):
            raise FileExistsError(
                f'{out} holds other files than the digits data. Remove it or choose '
                'another folder with --out'
            )
        with replaced_when_whole(out, sole_writer=True) as partial:
            partial.mkdir(mode=0o755)
            _write_all(partial, settings, progress)
    return True


def read_json(path: Path) -> dict | None:
    """Return the content of a JSON file, or None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def write_json(path: Path, content: dict) -> None:
    """Write an indented JSON file."""
    path.write_text(json.dumps(content, indent=2) + '\n')


def check_exists(path: str, data_root: str | None) -> None:
    """Check that a file or folder of the digits data exists.

    Raises:
        FileNotFoundError: If it does not; the message gives the command that writes it.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(
            f'{path} does not exist. Write the digits data first: '
            f'python -m demo.data --out {data_root or "<data_root>"}'
        )


def describe_instances(scene: scenes.Scene, image_id: int, first_id: int) -> list[dict]:
    """Return COCO's annotations of the digits of a scene; their ids count up."""
    return [
        dict(
            id=first_id + index,
            image_id=image_id,
            category_id=label + 1,
            **describe_mask(scene.instances == index + 1),
            iscrowd=0,
        )
        for index, label in enumerate(scene.labels)
    ]


def segment_map(scene: scenes.Scene) -> np.ndarray:
    """Return the panoptic segment of each pixel of a scene, ``(H, W)``.

    Digits have their ids in ``Scene.instances``, textures those from :data:`STUFF_ID`.
    """
    return np.where(scene.instances > 0, scene.instances, STUFF_ID + scene.textures)


def describe_segments(segments: np.ndarray, classes: np.ndarray) -> list[dict]:
    """Return COCO's ``segments_info`` from segment and class of each pixel."""
    masks = {int(segment): segments == segment for segment in np.unique(segments)}
    return [
        dict(
            id=segment,
            category_id=int(classes[mask][0]) + 1,
            **describe_extent(mask),
            iscrowd=0,
        )
        for segment, mask in masks.items()
    ]


def describe_extent(mask: np.ndarray) -> dict:
    """Return box (x, y, width, height) and area of a mask in pixels, as COCO does.

    Raises:
        ValueError: If no pixel is true.
    """
    if not mask.any():
        raise ValueError('the mask has no true pixel')
    box = cv2.boundingRect(mask.astype(np.uint8))
    return dict(bbox=list(box), area=int(mask.sum()))


def describe_mask(mask: np.ndarray) -> dict:
    """Return :func:`describe_extent` and the run-length encoding, as COCO does."""
    # Imported here: MMSegmentation does not depend on pycocotools.
    from pycocotools import mask as mask_utils

    extent = describe_extent(mask)
    encoded = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    size, counts = encoded['size'], encoded['counts'].decode('ascii')
    return dict(**extent, segmentation=dict(size=list(map(int, size)), counts=counts))


def _write_all(out: Path, settings: dict[str, int], progress: bool) -> None:
    seed, size = settings['seed'], settings['image_size']
    images, labels = scenes.load_digits()
    digits = scenes.split_digits(labels, seed)
    for split in scenes.SPLITS:
        count, candidates = settings[f'num_{split}'], digits[split]
        rngs = (scenes.scene_rng(seed, split, index) for index in range(count))
        composed = (
            scenes.compose_scene(rng, images, labels, candidates, size=size)
            for rng in rngs
        )
        bar = dict(desc=f'{split} scenes', unit='scene', disable=not progress)
        _write_split(out, split, tqdm(composed, total=count, **bar))
    write_json(out / SETTINGS_FILE, settings)


def _write_split(out: Path, split: str, composed: Iterable[scenes.Scene]) -> None:
    folder = out / 'annotations'
    image_folder = out / split
    panoptic_folder = folder / f'panoptic_{split}'
    semantic_folder = folder / f'semantic_{split}'
    for path in (image_folder, panoptic_folder, semantic_folder):
        path.mkdir(parents=True)
    images, instances, panoptic = [], [], []
    for index, scene in enumerate(composed):
        name, image_id = f'{index:06d}.png', index + 1
        height, width = scene.instances.shape
        images.append(dict(id=image_id, file_name=name, height=height, width=width))
        instances += describe_instances(scene, image_id, first_id=len(instances) + 1)
        segments, classes = segment_map(scene), scenes.class_map(scene)
        info = describe_segments(segments, classes)
        panoptic.append(dict(image_id=image_id, file_name=name, segments_info=info))
        # COCO's ids are R + 256 G + 256^2 B: all of ours fit into red.
        red = np.zeros((height, width, 3), np.uint8)
        red[..., 0] = segments
        _write_png(image_folder / name, scene.image)
        _write_png(panoptic_folder / name, red)
        _write_png(semantic_folder / name, classes)
    names = [(name, 'digit') for name in scenes.CLASSES]
    names += [(name, 'texture') for name in scenes.TEXTURES]
    # COCO's ids of categories start at 1.
    categories = [
        dict(id=number, name=name, supercategory=kind)
        for number, (name, kind) in enumerate(names, 1)
    ]
    digits = categories[: len(scenes.CLASSES)]
    everything = [dict(each, isthing=int(each in digits)) for each in categories]
    _write_coco(folder / f'instances_{split}.json', digits, images, instances)
    _write_coco(folder / f'panoptic_{split}.json', everything, images, panoptic)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    """Write RGB or single-channel pixels."""
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f'{path} could not be written')


def _write_coco(
    path: Path, categories: list[dict], images: list[dict], annotations: list[dict]
) -> None:
    content = dict(
        info=dict(description='Scenes of handwritten digits'),
        categories=categories,
        images=images,
        annotations=annotations,
    )
    path.write_text(json.dumps(content))
