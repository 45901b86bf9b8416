"""Scenes of handwritten digits, generated from a seed, as data sets for both toolboxes.

``python -m demo.data`` writes them. Configs list a module in ``custom_imports`` next to
``agvm_mm``: ``demo.detection`` for MMDetection, ``demo.segmentation`` for
MMSegmentation. Neither needs the other toolbox, and scenes are written without any.
"""

from demo.pretrain import pretrain_backbone
from demo.scenes import CLASSES, PIXEL_CLASSES, TEXTURES
from demo.writer import write_digits

__all__ = ['CLASSES', 'PIXEL_CLASSES', 'TEXTURES', 'pretrain_backbone', 'write_digits']
