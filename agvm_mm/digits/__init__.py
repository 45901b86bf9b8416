"""The embedded data: scenes of handwritten digits, made from a seed.

``python -m agvm_mm.digits`` writes them. Configs name what reads them in
``custom_imports`` beside ``agvm_mm``: this package with MMDetection,
``agvm_mm.digits.segmentation`` with MMSegmentation. Neither needs the other toolbox.
"""

import importlib
import importlib.util

from agvm_mm.digits.scenes import (
    CLASSES,
    PIXEL_CLASSES,
    TEXTURES,
    Scene,
    class_map,
    compose_scene,
    load_digits,
    scene_rng,
    split_digits,
)
from agvm_mm.digits.writer import is_finished, write_digits

__all__ = [
    'CLASSES',
    'PIXEL_CLASSES',
    'Scene',
    'TEXTURES',
    'class_map',
    'compose_scene',
    'is_finished',
    'load_digits',
    'pretrain_backbone',
    'scene_rng',
    'split_digits',
    'write_digits',
]

# Scenes can be made without MMDetection.
if importlib.util.find_spec('mmdet') is not None:
    from agvm_mm.digits.detection import DigitsDetDataset, DigitsPanopticDataset

    __all__ += ['DigitsDetDataset', 'DigitsPanopticDataset']

# Imported when asked for: the modules behind these need what not everyone has.
_LAZY = {
    'DigitsSegDataset': 'agvm_mm.digits.segmentation',
    'pretrain_backbone': 'agvm_mm.digits.pretrain',
}


def __getattr__(name):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
