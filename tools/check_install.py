"""Check that the installed stack works together: ``check_install.py TORCH``.

An installation can end without an error and still be useless: mmcv installs
without its operators when torch was missing at the time, or with operators
that belong to another torch. So everything is imported, and one operator runs.
"""

import importlib
import importlib.metadata
import re
import sys
import warnings
from pathlib import Path

MODULES = (
    'pkg_resources',  # mmengine needs it for `_base_ = 'mmdet::...'`
    'mmengine',
    'mmcv.ops',
    'mmdet.models',  # also asserts that the version of mmcv suits mmdet
    'mmseg.models',
    'panopticapi.evaluation',
    'pycocotools.mask',
    'sklearn.datasets',
    'matplotlib',
    'tensorboard',
)
VERSION_FILE = Path(__file__).resolve().parents[1] / 'agvm_mm' / 'version.py'


def main(torch_version):
    warnings.simplefilter('ignore')  # old packages are noisy on import
    import torch

    installed = torch.__version__.split('+')[0]
    if installed != torch_version:
        raise RuntimeError(f'torch is {installed}, not {torch_version}')
    for name in MODULES:
        importlib.import_module(name)

    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]])
    _, keep = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)
    if keep.tolist() != [0, 2]:
        raise RuntimeError(f'mmcv.ops.nms kept boxes {keep.tolist()}, not [0, 2]')

    version = re.search(r"'(.+)'", VERSION_FILE.read_text()).group(1)
    if importlib.metadata.version('agvm_mm') != version:
        raise RuntimeError(f'the installed agvm_mm is not version {version}')

    dists = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'agvm_mm')
    print(', '.join(f'{d} {importlib.metadata.version(d)}' for d in dists))


if __name__ == '__main__':
    try:
        main(sys.argv[1])
    except Exception as error:
        sys.exit(f'{type(error).__name__}: {error}')
