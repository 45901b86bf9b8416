"""The embedded data: scenes of handwritten digits, made from a seed.

``python -m agvm_mm.data`` writes them; configs that read them name this package
in ``custom_imports`` beside ``agvm_mm``.
"""

import importlib.util

from agvm_mm.data.scenes import (
    CLASSES,
    Scene,
    compose_scene,
    load_digits,
    scene_rng,
    split_digits,
)
from agvm_mm.data.writer import is_finished, write_digits

__all__ = [
    'CLASSES',
    'Scene',
    'compose_scene',
    'is_finished',
    'load_digits',
    'scene_rng',
    'split_digits',
    'write_digits',
]

# Scenes can be made without MMDetection, but only MMDetection reads this data set.
if importlib.util.find_spec('mmdet') is not None:
    from agvm_mm.data.dataset import DigitsDetDataset
    from agvm_mm.data.pretrain import pretrain_backbone

    __all__ += ['DigitsDetDataset', 'pretrain_backbone']
