"""How much of an update changes when its images are divided into micro-batches.

    python tools/dev/layouts.py                 # all families, about 30 minutes
    python tools/dev/layouts.py --only RetinaNet
    python tools/dev/layouts.py --normalizers update    # what that setting leaves
    python tools/dev/layouts.py --images 2              # only as 8 x 2

Models of stock configs get small random images and random weights. The gradient of 16
images in one batch is compared with that of the same images in micro-batches, in
BatchNorm's evaluation mode, without dropout, and with the same boxes sampled, in
float64 where the model runs in it. docs/layouts.md has the table.
"""

import argparse
import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from mmcv.ops import batched_nms
from mmdet.models.dense_heads import rpn_head
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
SIZE, LARGE = 64, 96
"""Heights and widths."""
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
    'RTMDet-Ins': 'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
    'SOLOv2': 'mmdet::solov2/solov2_r50_fpn_1x_coco.py',
    'CondInst': 'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'DETR': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'Deformable DETR': 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'DINO': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'Mask2Former': 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'MaskFormer': 'mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
    'Semantic FPN': 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
    'UperNet': 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
    'SegFormer': 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
}
FLOAT32 = 'ATSS', 'GFL', 'YOLOX', 'RTMDet', 'RTMDet-Ins', 'Mask2Former', 'MaskFormer'
"""Models that write float64 numbers into float32 tensors, or sample float32 masks."""
FLOAT64_BOXES = 'DETR', 'Deformable DETR', 'DINO'
"""Models that compare annotated boxes with predictions of the same type."""
LARGER = 'Faster R-CNN', 'Mask R-CNN', 'Cascade Mask R-CNN', 'Panoptic FPN'
"""Models whose proposals are too few on smaller images."""
IGNORED = 'ignored pixels'
OHEM = 'hardest pixels'
"""Variants of segmenters."""
SEGMENTERS = [name for name in CONFIGS if CONFIGS[name].startswith('mmseg')]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--only', default='', help='measure only families whose name begins with this'
    )
    parser.add_argument(
        '--images', type=int, nargs='+', default=LAYOUTS, help='of a micro-batch'
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
    with passes(model):
        normalizers.prepare(runner)
        with normalizers.of_update(runner, window) as taken:
            for _ in sizes:
                update.train_step(next(taken))
    update.finish(normalizers.correction)
    handle.remove()
    return found


@contextmanager
def passes(model: BaseModel) -> Iterator[None]:
    """Context in which each forward pass draws the same numbers.

    Preprocessors return images in float32.
    """

    def start(_: object, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        set_random_seed(0)
        inputs, *others = args or (kwargs.pop('inputs'),)
        return (inputs.to(torch.get_default_dtype()), *others), kwargs

    handle = model.register_forward_pre_hook(start, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def nms_in_float32(boxes: Tensor, scores: Tensor, *args: object) -> tuple:
    """Stand for MMCV's ``batched_nms``, which has no float64."""
    kept, rows = batched_nms(boxes.float(), scores.float(), *args)
    return kept.to(boxes), rows


def first_row(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function draw the same row for each object of a micro-batch."""

    def drawn(*args: Any, **kwargs: Any) -> Tensor:
        torch.manual_seed(0)
        rows = draw(*args, **kwargs)
        return rows[:1].expand_as(rows).clone()

    return drawn


@contextmanager
def same_samples(dtype: torch.dtype) -> Iterator[None]:
    """Context with a default type of numbers, in which samplers take the first boxes.

    Draws depend on the images before. So do points of masks (Mask2Former)
    and noise of boxes (DINO), which are the same for each object here.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with (
            mock.patch('torch.randperm', lambda n, **_: torch.arange(n)),
            mock.patch('torch.rand', first_row(torch.rand)),
            mock.patch('torch.rand_like', first_row(torch.rand_like)),
            mock.patch('torch.randint_like', first_row(torch.randint_like)),
            mock.patch.object(rpn_head, 'batched_nms', nms_in_float32),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


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


def measure(name: str, layouts: Iterable[tuple[int, str]]) -> list[tuple[float, float]]:
    """Return the differences of backbone and whole network.

    Args:
        name: Key of ``CONFIGS``, or a variant.
        layouts: Images of a micro-batch, and the setting of ``normalizers``.
    """
    size = LARGE if name in LARGER else SIZE
    family, _, variant = name.partition(', ')
    cfg = load(CONFIGS[family])
    cfg.model = small_model(cfg.model, size)
    if variant:
        for head in ('decode_head', 'auxiliary_head'):
            if head in cfg.model:
                cfg.model[head].loss_decode.avg_non_ignore = True
    if variant == OHEM:
        sampler = dict(type='OHEMPixelSampler', min_kept=size * size // 16)
        cfg.model.decode_head.sampler = sampler
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        elif hasattr(module, 'drop_prob'):  # DropPath
            module.drop_prob = 0.0
    images = make_images(cfg, IMAGES, size)
    if variant:
        # Rows without annotations, up to half of an image.
        for index, sample in enumerate(images['data_samples']):
            sample.gt_sem_seg.data[:, : size * index // (2 * IMAGES)] = 255
    dtype = torch.float32 if name in FLOAT32 else torch.float64
    if name == 'MaskFormer':
        # Fewer regions than queries. The images have all classes.
        things = cfg.model.panoptic_head.num_things_classes
        for index, sample in enumerate(images['data_samples']):
            sample.gt_sem_seg.sem_seg.clamp_(max=things + index % 8)
    if name in FLOAT64_BOXES:
        for sample in images['data_samples']:
            sample.gt_instances.bboxes = sample.gt_instances.bboxes.double()
    with same_samples(dtype):
        model.to(dtype)
        # Copies, as CondInst keeps tensors of a pass.
        whole = gradient(copy.deepcopy(model), images, IMAGES)
        parts = [gradient(copy.deepcopy(model), images, *each) for each in layouts]
    return [
        (difference(each, whole, 'backbone'), difference(each, whole)) for each in parts
    ]


def rows(only: str, sizes: Sequence[int], mode: str) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f'| model | {" | ".join(f"{IMAGES // size} x {size}" for size in sizes)} |'
    yield f'| --- |{" --- |" * len(sizes)}'
    variants = [f'{name}, {IGNORED}' for name in SEGMENTERS]
    for name in (*CONFIGS, *variants, f'{SEGMENTERS[0]}, {OHEM}'):
        if name.startswith(only):
            with one_rank(), quiet():
                found = measure(name, [(size, mode) for size in sizes])
            cells = (f'{backbone:.2g} / {every:.2g}' for backbone, every in found)
            yield f'| {name} | {" | ".join(cells)} |'


def main() -> None:
    """Print the table, line by line."""
    warnings.simplefilter('ignore')
    args = parse_args()
    for row in rows(args.only, args.images, args.normalizers):
        print(row, flush=True)


if __name__ == '__main__':
    main()
