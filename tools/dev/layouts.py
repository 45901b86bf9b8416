"""How much of an update changes when its images are divided into micro-batches.

    python tools/dev/layouts.py                 # all families, about 10 minutes
    python tools/dev/layouts.py --only retinanet
    python tools/dev/layouts.py --normalizers update    # what that setting leaves

Models of stock configs get small random images and random weights. The gradient of 16
images in one batch is compared with that of the same images in micro-batches, in
BatchNorm's evaluation mode, without dropout, and with the same boxes sampled.
docs/layouts.md has the table.
"""

import argparse
import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import set_random_seed
from stock.families import build_model, small_model
from stock.images import make_images, take
from stock.stock import load, one_rank
from torch import Tensor, nn

from agvm_mm.report.plan import quiet
from agvm_mm.training.dataloader import UpdateWindow
from agvm_mm.training.normalizers import MODES, Normalizers
from agvm_mm.training.update import Update

IMAGES = 16
SIZE = 96
LAYOUTS = (1, 2, 4)
"""Images of a micro-batch."""
CONFIGS = {
    'Faster R-CNN': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'Mask R-CNN': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'Cascade Mask R-CNN': 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'Panoptic FPN': 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
    'RetinaNet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'FCOS': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'GFL': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'YOLOX': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'RTMDet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'SOLOv2': 'mmdet::solov2/solov2_r50_fpn_1x_coco.py',
    'CondInst': 'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'DETR': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'Deformable DETR': 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'DINO': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'Mask2Former': 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'Semantic FPN': 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
    'UperNet': 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
    'SegFormer': 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--only', default='', help='measure only families whose name contains this'
    )
    parser.add_argument('--normalizers', choices=MODES, default=MODES[0])
    return parser.parse_args()


def gradient(
    model: BaseModel, images: dict, size: int, mode: str = MODES[0]
) -> dict[str, Tensor]:
    """Return the mean gradient over micro-batches of a size, by parameter."""
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0))
    runner = SimpleNamespace(
        model=model,
        optim_wrapper=wrapper,
        message_hub=MessageHub.get_current_instance(),
        cfg={},
        logger=MMLogger.get_current_instance(),
    )
    normalizers = Normalizers(mode)
    normalizers.prepare(runner)
    found: dict[str, Tensor] = {}

    def record(*_: object) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.clone()

    handle = wrapper.optimizer.register_step_pre_hook(record)
    sizes = [size] * (IMAGES // size)
    # Models change their data.
    batches = [
        copy.deepcopy(take(images, slice(start, start + size)))
        for start in range(0, IMAGES, size)
    ]
    update = Update(model, wrapper, sizes, IMAGES)
    window = UpdateWindow(iter(batches), sizes)
    with seeded_passes(model), normalizers.of_update(runner, window) as taken:
        for _ in sizes:
            update.train_step(next(taken))
    update.finish(normalizers.correction)
    handle.remove()
    return found


@contextmanager
def seeded_passes(model: BaseModel) -> Iterator[None]:
    """Context in which each forward pass draws the same random numbers."""

    def seed(*_: object) -> None:
        set_random_seed(0)

    handle = model.register_forward_pre_hook(seed)
    try:
        yield
    finally:
        handle.remove()


def difference(
    found: dict[str, Tensor], expected: dict[str, Tensor], prefix: str = ''
) -> float:
    """Return the relative L2 difference over the parameters with a prefix."""
    names = [name for name in expected if name.startswith(prefix)]
    missing = [torch.zeros(()), *(expected[name] for name in names)]
    apart = [found.get(name, 0) - expected[name] for name in names]
    return (_norm(apart) / _norm(missing)).item()


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([each.double().norm() for each in tensors]).norm()


def measure(config: str, mode: str) -> list[tuple[float, float]]:
    """Return the differences of backbone and whole network, for each layout."""
    cfg = load(config)
    cfg.model = small_model(cfg.model, SIZE)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    images = make_images(cfg, IMAGES, SIZE)
    # What a sampler draws depends on the images before.
    in_order = mock.patch('torch.randperm', lambda n, **_: torch.arange(n))
    with in_order:
        whole = gradient(model, images, IMAGES)
        parts = [gradient(model, images, size, mode) for size in LAYOUTS]
    return [
        (difference(each, whole, 'backbone'), difference(each, whole)) for each in parts
    ]


def rows(only: str, mode: str) -> Iterator[str]:
    """Yield the lines of the table."""
    yield '| model | 16 x 1 | 8 x 2 | 4 x 4 |'
    yield '| --- | --- | --- | --- |'
    for name, config in CONFIGS.items():
        if only.lower() in name.lower():
            with one_rank(), quiet():
                found = measure(config, mode)
            cells = (f'{backbone:.2g} / {every:.2g}' for backbone, every in found)
            yield f'| {name} | {" | ".join(cells)} |'


def main() -> None:
    """Print the table, line by line."""
    warnings.simplefilter('ignore')
    args = parse_args()
    for row in rows(args.only, args.normalizers):
        print(row, flush=True)


if __name__ == '__main__':
    main()
