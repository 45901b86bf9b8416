"""Digits scenes as an MMSegmentation data set.

A separate module: MMSegmentation is slow to import, needs packages that MMDetection
does not, and is not required by the rest.
"""

from collections.abc import Sequence
from typing import Any

from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset

from agvm_mm.validation import suggests_arguments
from demo.cache import CacheMixin
from demo.scenes import CLASS_COLORS, CLASSES, PIXEL_CLASSES, TEXTURE_COLORS
from demo.writer import check_exists

BACKGROUND = 'background'
"""Name of the class that all textures are merged into."""


@DATASETS.register_module()
@suggests_arguments()
class DigitsSegDataset(CacheMixin, BaseSegDataset):
    """Digits scenes with label maps: ten digits, and textures or one background.

    ``python -m demo.data`` writes the files. Takes the arguments of
    ``mmseg.datasets.BaseSegDataset``. Every pixel has a class, starting at 0, so
    ``reduce_zero_label`` must stay False.

    Args:
        *args: Those of ``BaseSegDataset``.
        textures: Whether the four background textures are separate classes, 10 to
            13, as in the panoptic maps. Otherwise they are one class 'background',
            10. Defaults to True.
        reduce_zero_label: Must be False.
        **kwargs: Those of ``BaseSegDataset``, and ``cache`` of :class:`CacheMixin`.

    Raises:
        FileNotFoundError: If the folder of the images or of the maps does not exist.
        ValueError: If ``reduce_zero_label`` is set.

    Example:
        >>> custom_imports = dict(imports=['agvm_mm', 'demo.segmentation'])
        >>> dataset = dict(
        ...     type='DigitsSegDataset',
        ...     data_root='data/digits/',
        ...     data_prefix=dict(
        ...         img_path='train/', seg_map_path='annotations/semantic_train/'),
        ...     pipeline=[])
    """

    METAINFO = {
        'classes': PIXEL_CLASSES,
        'palette': [list(color) for color in (*CLASS_COLORS, *TEXTURE_COLORS)],
    }

    def __init__(
        self,
        *args: Any,
        textures: bool = True,
        img_suffix: str = '.png',
        reduce_zero_label: bool = False,
        **kwargs: Any,
    ) -> None:
        if reduce_zero_label:
            raise ValueError(
                'reduce_zero_label=True would drop the digit 0, which is class 0 of '
                'the digits data. Remove this setting'
            )
        if not textures:
            kwargs['metainfo'] = dict(
                kwargs.get('metainfo') or {},
                classes=(*CLASSES, BACKGROUND),
                palette=self.METAINFO['palette'][: len(CLASSES) + 1],
            )
        super().__init__(*args, img_suffix=img_suffix, **kwargs)

    @classmethod
    def get_label_map(
        cls, new_classes: Sequence[str] | None = None
    ) -> dict[int, int] | None:
        """Map labels in the files to labels of the classes.

        Merges the textures if ``new_classes`` are the digits and 'background';
        otherwise see ``BaseSegDataset.get_label_map``.
        """
        if new_classes is not None and tuple(new_classes) == (*CLASSES, BACKGROUND):
            last = len(CLASSES)
            return {label: min(label, last) for label in range(len(PIXEL_CLASSES))}
        return super().get_label_map(new_classes)

    def load_data_list(self) -> list[dict]:
        """List images and maps, see ``BaseSegDataset.load_data_list``."""
        for prefix in ('img_path', 'seg_map_path'):
            if self.data_prefix.get(prefix):
                check_exists(self.data_prefix[prefix], self.data_root)
        return super().load_data_list()
