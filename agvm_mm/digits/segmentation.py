"""The digits scenes as an MMSegmentation data set.

A module of its own: MMSegmentation takes long to import, asks for packages that
MMDetection does without, and need not be installed for the rest.
"""

from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset

from agvm_mm.validation import suggests_arguments
from agvm_mm.digits.writer import check_there
from agvm_mm.digits.scenes import (
    CLASS_COLOURS,
    CLASSES,
    PIXEL_CLASSES,
    TEXTURE_COLOURS,
)

BACKGROUND = 'background'
"""Name of the class that stands for all textures."""


@DATASETS.register_module()
@suggests_arguments()
class DigitsSegDataset(BaseSegDataset):
    """Digits scenes with a label map: ten digits, and textures or one background.

    The files are made by ``python -m agvm_mm.digits``. Takes the arguments of
    ``mmseg.datasets.BaseSegDataset``. Every pixel has a class, from 0 on, so
    ``reduce_zero_label`` must stay False.

    Args:
        textures (bool): Whether the four background textures are classes of their
            own, 10 to 13, as in the panoptic maps. Otherwise they are one class
            'background', 10. Defaults to True.
        args, kwargs: Those of ``BaseSegDataset``; images end in '.png'.

    Raises:
        FileNotFoundError: If the folder of the images or of the maps is not there.
        ValueError: If ``reduce_zero_label`` is set.

    Example:
        >>> custom_imports = dict(imports=['agvm_mm', 'agvm_mm.digits.segmentation'])
        >>> dataset = dict(
        ...     type='DigitsSegDataset',
        ...     data_root='data/digits/',
        ...     data_prefix=dict(
        ...         img_path='train/', seg_map_path='annotations/semantic_train/'),
        ...     pipeline=[])
    """

    METAINFO = {
        'classes': PIXEL_CLASSES,
        'palette': [list(colour) for colour in (*CLASS_COLOURS, *TEXTURE_COLOURS)],
    }

    def __init__(
        self,
        *args,
        textures=True,
        img_suffix='.png',
        reduce_zero_label=False,
        **kwargs,
    ):
        if reduce_zero_label:
            raise ValueError(
                'reduce_zero_label would drop the digit 0, which is the class 0 of '
                'the digits data: leave it out'
            )
        if not textures:
            kwargs['metainfo'] = dict(
                kwargs.get('metainfo') or {},
                classes=(*CLASSES, BACKGROUND),
                palette=self.METAINFO['palette'][: len(CLASSES) + 1],
            )
        super().__init__(*args, img_suffix=img_suffix, **kwargs)

    @classmethod
    def get_label_map(cls, new_classes=None):
        """Labels of the maps to labels of the classes; None if they are the same.

        Args:
            new_classes (Sequence[str], optional): Names of the classes.

        Returns:
            dict[int, int] or None: See ``BaseSegDataset.get_label_map``.
        """
        if new_classes is not None and tuple(new_classes) == (*CLASSES, BACKGROUND):
            last = len(CLASSES)
            return {label: min(label, last) for label in range(len(PIXEL_CLASSES))}
        return super().get_label_map(new_classes)

    def load_data_list(self):
        """List images and maps, see ``BaseSegDataset.load_data_list``."""
        for prefix in ('img_path', 'seg_map_path'):
            if self.data_prefix.get(prefix):
                check_there(self.data_prefix[prefix], self.data_root)
        return super().load_data_list()
