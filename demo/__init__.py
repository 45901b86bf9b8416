"""Scenes of handwritten digits, generated from a seed, as data sets for both toolboxes.

``python -m demo.data`` writes them. Configs list a module in ``custom_imports``
next to ``agvm_mm``: this package for MMDetection, ``demo.segmentation`` for
MMSegmentation. Neither needs the other toolbox.
"""

import importlib.util

from demo.pretrain import pretrain_backbone
from demo.scenes import CLASSES, PIXEL_CLASSES, TEXTURES
from demo.writer import write_digits

__all__ = ['CLASSES', 'PIXEL_CLASSES', 'TEXTURES', 'pretrain_backbone', 'write_digits']

# Scenes can be written without MMDetection.
if importlib.util.find_spec('mmdet') is not None:
    from demo.detection import DigitsDetDataset, DigitsPanopticDataset

    __all__ += ['DigitsDetDataset', 'DigitsPanopticDataset']


def __getattr__(name: str) -> object:
    # MMSegmentation is slow to import and optional.
    if name == 'DigitsSegDataset':
        from demo.segmentation import DigitsSegDataset

        return DigitsSegDataset
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
