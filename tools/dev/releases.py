"""Measure what docs/toolboxes.md says of the toolboxes and of what they stand on.

    python tools/dev/releases.py           # all, a minute
    python tools/dev/releases.py warps     # those whose name contains this
    python tools/dev/releases.py configs   # reads all stock configs, some minutes

Prints what each measurement finds. Exits with status 1 if one differs from the page,
which is about the versions of the default lane; others can differ and are named there.
"""

import argparse
import hashlib
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib
import mmcv
import mmdet
import mmengine
import mmseg
import numpy as np
import torch
import torch.distributed as dist
from mmdet.datasets.transforms import LoadAnnotations as DetAnnotations
from mmdet.structures.mask import PolygonMasks
from mmengine.optim import scheduler as schedulers
from mmengine.runner.checkpoint import load_state_dict
from mmengine.visualization import LocalVisBackend, Visualizer
from mmseg.datasets.transforms import LoadAnnotations as SegAnnotations
from mmseg.datasets.transforms import RandomRotFlip
from mmseg.evaluation import IoUMetric
from PIL import Image
from pytorch_optimizer import Lamb
from sklearn.datasets import load_sample_image
from torch import nn
from torch.optim import lr_scheduler

ROOT = Path(__file__).resolve().parents[2]
MEASUREMENTS: dict[str, tuple[Callable, object]] = {}
# Transforms that warp images, and those of AutoAugment's kind that may contain them.
WARPS = {
    'RandomAffine', 'Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY',
    'RandomRotate', 'RandomRotFlip', 'GeomTransform', 'RandAugment', 'AutoAugment',
}  # fmt: skip


def expects(value: object) -> Callable:
    """Register a measurement with what the page says."""

    def register(function: Callable) -> Callable:
        MEASUREMENTS[function.__name__] = function, value
        return function

    return register


# ---------------------------------------------------------- pixels, labels


def exact_warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Warp an image bilinearly in float64, with zeros outside; round once."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    points = np.stack([columns, rows, np.ones_like(rows)]).reshape(3, -1)
    x, y, scale = np.linalg.inv(matrix) @ points
    x, y = x / scale, y / scale
    left, top = np.floor(x), np.floor(y)
    padded = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    total = 0.0
    for i in (0, 1):
        for j in (0, 1):
            weight = np.where(i, y - top, 1 - y + top) * np.where(
                j, x - left, 1 - x + left
            )
            at = (
                np.clip(top + i + 1, 0, height + 1),
                np.clip(left + j + 1, 0, width + 1),
            )
            total += weight[:, None] * padded[at[0].astype(int), at[1].astype(int)]
    return np.rint(total).reshape(image.shape)


@expects({'affine': '0.0% by at most 1', 'perspective': '0.0% by at most 1'})
def warps() -> dict:
    """Compare OpenCV's warps of a photo with exact ones: share of other values."""
    image = np.ascontiguousarray(load_sample_image('china.jpg')[:320, :480])
    affine = np.vstack([cv2.getRotationMatrix2D((240, 160), 17, 1.1), [0, 0, 1]])
    perspective = affine.copy()
    perspective[2, :2] = 1e-4, -2e-4
    seen = {
        'affine': (cv2.warpAffine(image, affine[:2], (480, 320)), affine),
        'perspective': (
            cv2.warpPerspective(image, perspective, (480, 320)),
            perspective,
        ),
    }
    result = {}
    for name, (found, matrix) in seen.items():
        off = np.abs(found - exact_warp(image, matrix))
        result[name] = f'{(off > 0).mean():.1%} by at most {off.max():.0f}'
    return result


@expects('38ec2c307b')
def other_pixels() -> str:
    """Return a digest of what does not change from OpenCV 4.11 to 5.0."""
    image = np.ascontiguousarray(load_sample_image('china.jpg')[:320, :480])
    results = [
        mmcv.imrescale(image, 0.6),
        mmcv.imresize(image, (700, 500)),
        mmcv.imresize(image, (300, 200), interpolation='area'),
        mmcv.imflip(image),
        mmcv.bgr2hsv(image),
        mmcv.hsv2bgr(image),
        mmcv.imnormalize(image, np.array([1.0, 2, 3]), np.array([4.0, 5, 6])),
        cv2.imdecode(cv2.imencode('.jpg', image)[1], cv2.IMREAD_COLOR),
        cv2.GaussianBlur(image, (5, 5), 1.0),
    ]
    return hashlib.sha256(b''.join(each.tobytes() for each in results)).hexdigest()[:10]


@expects([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
def rot_flip() -> list:
    """Return the labels that RandomRotFlip makes of 0 and 10."""
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 20:] = 10
    random.seed(0)
    np.random.seed(0)
    results = dict(img=np.zeros((40, 40, 3), np.uint8), gt_seg_map=labels)
    transform = RandomRotFlip(rotate_prob=1.0, flip_prob=0.0, degree=(10, 20))
    turned = transform(results | dict(seg_fields=['gt_seg_map']))
    return np.unique(turned['gt_seg_map']).tolist()


@expects({'MMSegmentation': [44, 1], 'MMDetection': [300, 1]})
def labels_of_16_bits() -> dict:
    """Return what is read of a PNG with the labels 300 and 1."""
    with tempfile.NamedTemporaryFile(suffix='.png') as file:
        Image.fromarray(np.array([[300, 1]], np.uint16)).save(file.name)
        return read_labels(file.name)


@expects({'MMSegmentation': [0, 1], 'MMDetection': [[0, 0, 0], [0, 0, 128]]})
def labels_with_a_palette() -> dict:
    """Return what is read of a PNG with the labels 0 and 1, shown as black and red."""
    image = Image.fromarray(np.array([[0, 1]], np.uint8), mode='P')
    image.putpalette([0, 0, 0, 128, 0, 0])
    with tempfile.NamedTemporaryFile(suffix='.png') as file:
        image.save(file.name)
        return read_labels(file.name)


def read_labels(path: str) -> dict:
    """Read a label map with the default readers of both toolboxes."""
    detection = DetAnnotations(with_bbox=False, with_label=False, with_seg=True)
    extra = dict(seg_fields=[], reduce_zero_label=False, label_map=None)
    return {
        'MMSegmentation': SegAnnotations()(dict(extra, seg_map_path=path))[
            'gt_seg_map'
        ].tolist(),
        'MMDetection': detection(dict(seg_map_path=path))['gt_seg_map'].tolist(),
    }


@expects({'before': 18, 'after': 9})
def crossing_polygon() -> dict:
    """Return the pixels of an hourglass before and after a crop that cuts nothing."""
    masks = PolygonMasks([[np.array([2.0, 2, 8, 8, 8, 2, 2, 8])]], 10, 10)
    cropped = masks.crop(np.array([0.0, 0, 10, 10]))
    return {
        'before': int(masks.to_ndarray().sum()),
        'after': int(cropped.to_ndarray().sum()),
    }


@expects('0% of the pixels changed')
def pictures() -> str:
    """Compare an image with what MMEngine's Visualizer returns of it."""
    image = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    visualizer = Visualizer(image=image)
    changed = (visualizer.get_image() != image).any(-1).mean()
    return f'{changed:.0%} of the pixels changed'


# ---------------------------------------------------------- schedules, optimizers


def rates(kind: type, updates: int = 6, **kwargs: object) -> list:
    """Return the learning rates of a schedule from 1, at each update."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    if kind.__module__.startswith('mmengine'):
        kwargs['by_epoch'] = False
    scheduler, seen = kind(optimizer, **kwargs), []
    for _ in range(updates):
        seen.append(round(optimizer.param_groups[0]['lr'], 3))
        optimizer.step()
        scheduler.step()
    return seen


@expects([True, True, False, False])
def schedules_end_early() -> list:
    """Compare PolyLR and LinearLR of end=5 with torch's of 4 and of 5."""
    return [
        rates(schedulers.PolyLR, end=5)
        == rates(lr_scheduler.PolynomialLR, total_iters=4),
        rates(schedulers.LinearLR, end=5)
        == rates(lr_scheduler.LinearLR, total_iters=4),
        rates(schedulers.PolyLR, end=5)
        == rates(lr_scheduler.PolynomialLR, total_iters=5),
        rates(schedulers.LinearLR, end=5)
        == rates(lr_scheduler.LinearLR, total_iters=5),
    ]


@expects([1.0, 1.0, 1.0, 1.0, 1.0, 0.1])
def milestones_count_from_begin() -> list:
    """Return the rates of a MultiStepLR with begin=2 and a milestone at 3."""
    return rates(schedulers.MultiStepLR, begin=2, milestones=[3])


@expects({'cosine': [1.0, 0.75, 0.25, 0.25], 'exponential': [1.0, 0.5, 0.25, 0.25]})
def schedules_stay() -> dict:
    """Return the rates of a CosineAnnealingLR and an ExponentialLR with end=3."""
    return {
        'cosine': rates(schedulers.CosineAnnealingLR, 4, end=3),
        'exponential': rates(schedulers.ExponentialLR, 4, gamma=0.5, end=3),
    }


@expects({'default': [10.0, 5.26, 3.69], 'adam_debias=True': [1.0, 1.0, 1.0]})
def lamb() -> dict:
    """Return lengths of Lamb's first updates by lr times the norm of the weights."""
    result = {}
    for name, kwargs in (('default', {}), ('adam_debias=True', {'adam_debias': True})):
        weights = nn.Parameter(torch.ones(4, dtype=torch.float64))
        optimizer = Lamb([weights], lr=1e-3, weight_decay=0.0, **kwargs)
        result[name] = []
        for _ in range(3):
            before = weights.detach().clone()
            weights.grad = torch.ones_like(weights)
            optimizer.step()
            length = (weights.detach() - before).norm() / (1e-3 * before.norm())
            result[name].append(round(length.item(), 2))
    return result


@expects({'equal': '03435f', 'other than in torch 2.1': 'fe279d'})
def random_numbers() -> dict:
    """Return digests of random numbers on a CPU: as torch 2.1 draws, and others."""

    def digest(*draws: Callable) -> str:
        found = hashlib.sha256()
        for draw in draws:
            torch.manual_seed(0)
            found.update(draw().numpy().tobytes())
        return found.hexdigest()[:6]

    weights = torch.ones(64, 64)
    return {
        'equal': digest(
            lambda: torch.randn(1000),
            lambda: torch.rand(1000),
            lambda: torch.randperm(1000),
            lambda: torch.bernoulli(torch.full((1000,), 0.3)),
            lambda: nn.init.kaiming_normal_(weights),
            lambda: nn.init.xavier_uniform_(weights),
        ),
        'other than in torch 2.1': digest(
            lambda: nn.functional.dropout(torch.ones(1000)),
            lambda: torch.empty(1000).bernoulli_(0.3),
            lambda: torch.empty(1000).exponential_(),
            lambda: torch.multinomial(torch.ones(1000), 100),
            lambda: nn.init.trunc_normal_(weights),
        ),
    }


# ---------------------------------------------------------- scores, weights


@expects(
    '{"aAcc": 33.33000183105469, "mIoU": 16.670000076293945, "mAcc": 50.0, "step": 1}'
)
def scores() -> str:
    """Return the line that scalars.json has of an mIoU."""
    metric = IoUMetric(prefix='')
    metric.dataset_meta = dict(classes=('a', 'b'))
    sample = dict(data=torch.tensor([[0, 0, 0]])), dict(data=torch.tensor([[0, 1, 1]]))
    metric.process({}, [dict(zip(('pred_sem_seg', 'gt_sem_seg'), sample, strict=True))])
    with tempfile.TemporaryDirectory() as folder:
        backend = LocalVisBackend(folder)
        backend.add_scalars(metric.compute_metrics(metric.results), step=1)
        return Path(folder, 'scalars.json').read_text().strip()


@expects('nothing was loaded')
def loading_into_shards() -> str:
    """Load plain weights into a model of FSDP2 as MMEngine's Runner does by default."""
    from torch.distributed.fsdp import fully_shard

    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(f'{folder}/store', 1)
        dist.init_process_group('gloo', store=store, rank=0, world_size=1)
        model = nn.Linear(3, 2)
        mesh = dist.device_mesh.init_device_mesh('cpu', (1,))
        fully_shard(model, mesh=mesh)
        before = model.weight.full_tensor().clone()
        load_state_dict(model, nn.Linear(3, 2).state_dict(), strict=False)
        same = torch.equal(before, model.weight.full_tensor())
        dist.destroy_process_group()
    return 'nothing was loaded' if same else 'loaded'


# ---------------------------------------------------------- configs


def parts(config: object) -> list[dict]:
    """Return all dictionaries in a config."""
    if isinstance(config, dict):
        return [config, *(part for value in config.values() for part in parts(value))]
    if isinstance(config, list | tuple):
        return [part for value in config for part in parts(value)]
    return []


def read_configs(folder: Path) -> dict[str, dict]:
    """Read the configs of a folder, without those that are bases of others."""
    found = {}
    for path in sorted(folder.rglob('*.py')):
        if '_base_' not in path.parts:
            try:
                config = mmengine.Config.fromfile(path, import_custom_modules=False)
                found[path.stem] = config.to_dict()
            except (OSError, ModuleNotFoundError) as error:  # No such file, mmpretrain.
                print(error, file=sys.stderr)
    return found


def describe_schedules(config: dict) -> set[str]:
    """Return which of the schedules of a config the page is about."""
    found, given = set(), config.get('param_scheduler') or []
    for each in [given] if isinstance(given, dict) else given:
        kind, begin = each['type'], each.get('begin', 0)
        if kind == 'PolyLR' and not each.get('eta_min'):
            found.add('PolyLR to 0')
        if kind == 'LinearLR':
            found.add('LinearLR')
        if kind == 'MultiStepLR' and begin:
            found.add(f'MultiStepLR from {begin}')
    return found


@expects(
    {
        'warps in stock configs': 19,
        'ours with PolyLR to 0': 32,
        'ours with MultiStepLR from later than 0': 0,
    }
)
def configs() -> dict:
    """Count the configs that the page is about."""
    stock = {}
    for package in (mmdet, mmseg):
        stock |= read_configs(Path(package.__file__).parent / '.mim/configs')
    warping = [
        name
        for name, config in stock.items()
        if WARPS & {str(part.get('type')) for part in parts(config)}
    ]
    print(f'warps: {", ".join(warping)}', file=sys.stderr)
    ours = {n: describe_schedules(c) for n, c in read_configs(ROOT / 'configs').items()}
    for name, found in ours.items():
        print(f'{name}: {sorted(found)}', file=sys.stderr)
    return {
        'warps in stock configs': len(warping),
        'ours with PolyLR to 0': sum('PolyLR to 0' in found for found in ours.values()),
        'ours with MultiStepLR from later than 0': sum(
            any(text.startswith('MultiStepLR') for text in found)
            for found in ours.values()
        ),
    }


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('only', nargs='?', default='', help='a part of the names')
    only = parser.parse_args().only
    versions = dict(
        torch=torch, numpy=np, opencv=cv2, matplotlib=matplotlib, mmcv=mmcv,
        mmengine=mmengine, mmdet=mmdet, mmseg=mmseg,
    )  # fmt: skip
    print(', '.join(f'{name} {own.__version__}' for name, own in versions.items()))
    others = 0
    for name, (measure, expected) in MEASUREMENTS.items():
        if only in name and (only or name != 'configs'):
            seen = measure()
            others += seen != expected
            state = 'as on the page' if seen == expected else f'OTHER than {expected}'
            print(f'{name}: {json.dumps(seen)}: {state}', flush=True)
    return int(others > 0)


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    sys.exit(main())
