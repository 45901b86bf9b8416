"""Scenes of handwritten digits: pure functions of a numpy generator.

A scene is a textured canvas with a few real handwritten digits (scikit-learn's
bundled 1,797 images of 8 x 8 pixels) pasted at several scales. All randomness comes
from the ``numpy.random.Generator`` that is passed in. :func:`scene_rng` returns a
separate one for every scene: scene ``i`` does not depend on the number of scenes,
their order or the number of processes.

``images`` are all source digits, ``(N, 8, 8)`` in [0, 1], ``labels`` their classes,
``candidates`` the indices of those that may be used.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from agvm_mm.validation import check_choice

CLASSES = tuple(str(digit) for digit in range(10))
"""Names of the ten object classes; label ``k`` is the digit ``k``."""

TEXTURES = ('plain', 'stripes', 'checks', 'blobs')
"""Names of the background textures, by their value in ``Scene.textures``."""

# Okabe and Ito's colors, which color-blind readers can distinguish, and two more.
CLASS_COLORS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (255, 255, 255),
    (0, 0, 0),
    (128, 128, 128),
)
"""RGB color of each class in figures."""

# Muted, so that the digits stand out.
TEXTURE_COLORS = ((60, 50, 70), (110, 100, 80), (70, 95, 90), (160, 150, 170))
"""RGB color of each texture in figures."""

PIXEL_CLASSES = CLASSES + TEXTURES
"""Names of the classes of pixels in the order of labels: things, then stuff."""

SPLITS = ('train', 'val')

IMAGE_SIZE = 96
"""Side of a scene, in pixels."""

DIGIT_HEIGHTS = (12, 48)
"""Smallest and largest side of the square an 8 x 8 digit is scaled to, in pixels."""

DIGITS_PER_SCENE = (2, 6)

VAL_FRACTION = 0.2
"""Fraction of the digits of each class that are for validation."""

MAX_BOX_OVERLAP = 0.15
"""Largest fraction of a digit's square that may overlap with earlier squares."""

# First element of the spawn keys below: the purpose of a stream of random numbers.
# Never change these values, or the same seed would give other data.
_SPLIT_STREAM = 0
_SCENE_STREAMS = {'train': 1, 'val': 2}


@dataclass(frozen=True)
class Scene:
    """Image with the ground truth of every pixel.

    Args:
        image: RGB image, ``(H, W, 3)``, uint8.
        instances: ``(H, W)``, uint8. 0 is background, ``k`` marks the visible
            pixels of the k-th digit, starting at 1.
        labels: Class of each digit: ``labels[k - 1]`` is the class of ``k``.
        sources: Index of each digit in ``sklearn.datasets.load_digits()``.
        textures: ``(H, W)``, uint8, index in :data:`TEXTURES` of the background
            at (or behind) each pixel.
    """

    image: np.ndarray
    instances: np.ndarray
    labels: tuple[int, ...]
    sources: tuple[int, ...]
    textures: np.ndarray


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Load scikit-learn's bundled handwritten digits.

    Returns:
        Images, ``(1797, 8, 8)``, float32 in [0, 1], where 1 is ink, and labels,
        ``(1797,)``, int64.
    """
    # scikit-learn takes a second to import and is needed only here.
    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError as error:
        raise ImportError(
            'The handwritten digits come with scikit-learn: pip install scikit-learn'
        ) from error

    bunch = sklearn_digits()
    return bunch.images.astype(np.float32) / 16, bunch.target.astype(np.int64)


def split_digits(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Split the source digits into training and validation digits.

    Returns:
        Sorted indices by split; disjoint, and together all of ``0 .. N - 1``.
    """
    rng = stream_rng(seed, _SPLIT_STREAM)
    parts = {split: [] for split in SPLITS}
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        cut = max(1, round(VAL_FRACTION * len(members)))
        parts['val'].append(members[:cut])
        parts['train'].append(members[cut:])
    return {split: np.sort(np.concatenate(part)) for split, part in parts.items()}


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """Return the generator of a scene of a split, independent of every other's."""
    check_choice('split', split, SPLITS)
    return stream_rng(seed, _SCENE_STREAMS[split], index)


def stream_rng(seed: int, *key: int) -> np.random.Generator:
    """Return the random generator of a key, independent of every other key's."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def compose_scene(
    rng: np.random.Generator,
    images: np.ndarray,
    labels: np.ndarray,
    candidates: np.ndarray,
    *,
    size: int = IMAGE_SIZE,
) -> Scene:
    """Draw one scene of ``size`` pixels, at least those of the largest digit.

    Returns:
        A scene with at least one digit; every digit is inside the canvas.
    """
    image, textures = draw_background(rng, size)
    count = rng.integers(DIGITS_PER_SCENE[0], DIGITS_PER_SCENE[1] + 1)
    low, high = np.log(DIGIT_HEIGHTS)
    heights = np.exp(rng.uniform(low, high, count)).round().astype(int)
    # Largest first: later, smaller digits hide only a little of it.
    heights = np.sort(heights)[::-1]
    occupied = np.zeros((size, size), bool)
    instances = np.zeros((size, size), np.uint8)
    used = []
    for height in heights:
        corner = _find_place(rng, occupied, height)
        if corner is None:
            continue
        source = rng.choice(candidates)
        ink = render_digit(rng, images[source], height)
        region = _square(corner, height)
        paste_ink(rng, image[region], ink)
        used.append(int(source))
        instances[region][ink >= 0.5] = len(used)
        occupied[region] = True
    return Scene(
        image=image.round().astype(np.uint8),
        instances=instances,
        labels=tuple(int(labels[source]) for source in used),
        sources=tuple(used),
        textures=textures,
    )


def class_map(scene: Scene) -> np.ndarray:
    """Return the index in :data:`PIXEL_CLASSES` of each pixel of a scene, uint8."""
    labels = np.array((0, *scene.labels), np.uint8)[scene.instances]
    stuff = len(CLASSES) + scene.textures
    return np.where(scene.instances > 0, labels, stuff).astype(np.uint8)


def compose_patch(
    rng: np.random.Generator, digit: np.ndarray, *, size: int
) -> np.ndarray:
    """Draw a source digit, ``(8, 8)``, near the center of a textured patch.

    Returns:
        RGB image, ``(size, size, 3)``, uint8.
    """
    image, _ = draw_background(rng, size)
    height = rng.integers(size * 2 // 5, size * 9 // 10 + 1)
    middle = (size - height) / 2
    corner = np.round(middle * rng.uniform(0.3, 1.7, 2)).astype(int)
    ink = render_digit(rng, digit, height)
    paste_ink(rng, image[_square(corner, height)], ink)
    return image.round().astype(np.uint8)


def draw_background(
    rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw two textures that meet along a random straight line.

    Returns:
        Image, ``(size, size, 3)``, float32 in [0, 255], and the map of texture
        indices, ``(size, size)``, uint8.
    """
    kinds = rng.choice(len(TEXTURES), 2, replace=False)
    y, x = _grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    offset = rng.uniform(-0.25, 0.25) * size
    distance = math.cos(angle) * (x - size / 2) + math.sin(angle) * (y - size / 2)
    side = distance > offset
    first = draw_texture(rng, TEXTURES[kinds[0]], size)
    second = draw_texture(rng, TEXTURES[kinds[1]], size)
    image = np.where(side[..., None], second, first)
    image += 4 * rng.standard_normal(image.shape, dtype=np.float32)
    textures = np.where(side, kinds[1], kinds[0]).astype(np.uint8)
    return np.clip(image, 0, 255), textures


def draw_texture(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """Draw one of :data:`TEXTURES` that fills the canvas.

    Returns:
        Image, ``(size, size, 3)``, float32, not yet clipped to [0, 255].
    """
    base = rng.uniform(40, 215, 3).astype(np.float32)
    swing = rng.uniform(-30, 30, 3).astype(np.float32)
    y, x = _grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    period = rng.uniform(6, 20)
    if kind == 'plain':
        pattern = along / size
    elif kind == 'stripes':
        pattern = np.sin(2 * math.pi * along / period)
    elif kind == 'checks':
        pattern = np.sign(np.sin(2 * math.pi * along / period))
        pattern = pattern * np.sign(np.sin(2 * math.pi * across / period))
    else:  # blobs
        coarse = rng.standard_normal((7, 7), dtype=np.float32)
        pattern = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return base + pattern[..., None] * swing


def render_digit(
    rng: np.random.Generator, digit: np.ndarray, height: int
) -> np.ndarray:
    """Upscale a source digit, ``(8, 8)``, slightly rotated and slanted.

    Returns:
        Ink coverage of each pixel, ``(height, height)``, float32 in [0, 1]. A pixel
        belongs to the digit if its coverage is at least 0.5.
    """
    angle = math.radians(rng.uniform(-12, 12))
    slant = rng.uniform(-0.15, 0.15)
    # Maps target to source pixels, around the centers. 9.5 source pixels across leave
    # a small margin: a rotated digit is not cut off at the border.
    scale = 9.5 / height
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    linear = np.array([[cos, -sin + slant * scale], [sin, cos]])
    shift = np.array([3.5, 3.5]) - linear @ np.full(2, (height - 1) / 2)
    ink = cv2.warpAffine(
        digit,
        np.hstack([linear, shift[:, None]]),
        (int(height), int(height)),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    # A steep ramp around 0.4 turns the blur of upscaling into a stroke.
    return np.clip((ink - 0.4) / 0.3 + 0.5, 0, 1).astype(np.float32)


def paste_ink(rng: np.random.Generator, region: np.ndarray, ink: np.ndarray) -> None:
    """Blend ink of a random color, ``(h, w)`` in [0, 1], into a region, in place.

    To keep every digit readable, the brightness of the color differs from the
    region's by 70 levels or more.
    """
    background = region.mean()
    dark = background - 70 >= 0 and (background + 70 > 255 or rng.random() < 0.5)
    low, high = (0, background - 70) if dark else (background + 70, 255)
    color = rng.uniform(low, high) + rng.uniform(-25, 25, 3).astype(np.float32)
    ink = ink[..., None]
    region[:] = np.clip(region * (1 - ink) + color * ink, 0, 255)


def _find_place(
    rng: np.random.Generator, occupied: np.ndarray, height: int, tries: int = 30
) -> np.ndarray | None:
    """Return the top-left corner (y, x) of a nearly free square, or None."""
    for _ in range(tries):
        corner = rng.integers(0, occupied.shape[0] - height + 1, 2)
        if occupied[_square(corner, height)].mean() <= MAX_BOX_OVERLAP:
            return corner
    return None


def _square(corner: np.ndarray, height: int) -> tuple[slice, slice]:
    y, x = corner
    return slice(y, y + height), slice(x, x + height)


def _grid(size: int) -> np.ndarray:
    return np.mgrid[:size, :size].astype(np.float32)
