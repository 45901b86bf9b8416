"""Digits scenes as MMDetection data sets."""

from mmdet.datasets import CocoDataset, CocoPanopticDataset
from mmengine.registry import DATASETS

from agvm_mm.validation import suggests_arguments
from demo.cache import CacheMixin
from demo.scenes import CLASS_COLORS, CLASSES, PIXEL_CLASSES, TEXTURE_COLORS, TEXTURES
from demo.writer import check_exists


@DATASETS.register_module()
@suggests_arguments()
class DigitsDetDataset(CacheMixin, CocoDataset):
    """Digits scenes with boxes and instance masks, read from COCO files.

    ``python -m demo.data`` writes the files. Takes the arguments of
    ``mmdet.datasets.CocoDataset`` and ``cache`` of :class:`CacheMixin`.

    Raises:
        FileNotFoundError: If the annotation file does not exist.

    Example:
        >>> dataset = dict(
        ...     type='DigitsDetDataset',
        ...     data_root='data/digits/',
        ...     ann_file='annotations/instances_train.json',
        ...     data_prefix=dict(img='train/'),
        ...     pipeline=[])
    """

    METAINFO = {'classes': CLASSES, 'palette': list(CLASS_COLORS)}

    def load_data_list(self) -> list[dict]:
        """Load the annotations, see ``CocoDataset.load_data_list``."""
        check_exists(self.ann_file, self.data_root)
        return super().load_data_list()


@DATASETS.register_module()
@suggests_arguments()
class DigitsPanopticDataset(CocoPanopticDataset):
    """Digits scenes with panoptic maps: digits are things, textures are stuff.

    ``python -m demo.data`` writes the files. Takes the arguments of
    ``mmdet.datasets.CocoPanopticDataset``. Loading the maps and evaluating needs the
    module ``panopticapi``: ``pip install --no-deps panopticapi-lite``.

    Raises:
        FileNotFoundError: If the annotation file or the folder of the maps does not
            exist.

    Example:
        >>> dataset = dict(
        ...     type='DigitsPanopticDataset',
        ...     data_root='data/digits/',
        ...     ann_file='annotations/panoptic_train.json',
        ...     data_prefix=dict(img='train/', seg='annotations/panoptic_train/'),
        ...     pipeline=[])
    """

    METAINFO = {
        'classes': PIXEL_CLASSES,
        'thing_classes': CLASSES,
        'stuff_classes': TEXTURES,
        'palette': [*CLASS_COLORS, *TEXTURE_COLORS],
    }

    def load_data_list(self) -> list[dict]:
        """Load the annotations, see ``CocoPanopticDataset.load_data_list``."""
        check_exists(self.ann_file, self.data_root)
        if self.data_prefix.get('seg'):
            check_exists(self.data_prefix['seg'], self.data_root)
        return super().load_data_list()
