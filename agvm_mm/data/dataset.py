"""The digits scenes as an MMDetection data set."""

import os.path as osp

from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS

from agvm_mm.data.scenes import CLASSES


@DATASETS.register_module()
class DigitsDetDataset(CocoDataset):
    """Digits scenes with boxes and instance masks, read from COCO files.

    The files are made by ``python -m agvm_mm.data``. Takes the arguments of
    ``mmdet.datasets.CocoDataset``.

    Raises:
        FileNotFoundError: If the annotation file is not there.

    Example:
        >>> dataset = dict(
        ...     type='DigitsDetDataset',
        ...     data_root='data/digits/',
        ...     ann_file='annotations/instances_train.json',
        ...     data_prefix=dict(img='train/'),
        ...     pipeline=[])
    """

    METAINFO = {
        'classes': CLASSES,
        # Okabe and Ito's colours, which colour-blind readers can tell apart, and
        # two more.
        'palette': [
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
        ],
    }

    def load_data_list(self):
        """Read the annotations, see ``CocoDataset.load_data_list``."""
        if not osp.isfile(self.ann_file):
            out = self.data_root or '<data_root>'
            raise FileNotFoundError(
                f'{self.ann_file} is not there. Make the digits data first: '
                f'python -m agvm_mm.data --out {out}'
            )
        return super().load_data_list()
