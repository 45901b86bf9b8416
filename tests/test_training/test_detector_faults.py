"""Detector on images without objects: no hang and no NaN in Phi."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from ranks import run_on_ranks
from torch.nn.parallel import DistributedDataParallel
from toy import make_wrapper

CONFIG = (
    Path(__file__).parents[2]
    / 'configs/digits/faster-rcnn_r18_w16_fpn_agvm-sgd_b256_10e_digits.py'
)
MODULES = {'backbone', 'neck', 'rpn_head', 'bbox_head'}


def build_detector():
    """Build the digits Faster R-CNN with random weights."""
    import mmdet.models  # noqa: F401

    init_default_scope('mmdet')
    torch.manual_seed(0)
    settings = Config.fromfile(CONFIG).model
    settings.backbone.init_cfg = None
    return MODELS.build(settings).train()


def make_batch(seed, kind):
    """Return two 96 x 96 images: 'boxes', 'no_boxes', or 'empty' (black, no boxes)."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(seed)
    inputs, samples = [], []
    for _ in range(2):
        image = torch.randint(0, 256, (3, 96, 96), generator=generator).byte()
        count = 3 if kind == 'boxes' else 0
        corners = torch.rand(count, 2, generator=generator) * 50
        instances = InstanceData(
            bboxes=torch.cat([corners, corners + 30], dim=1),
            labels=torch.randint(0, 10, (count,), generator=generator),
        )
        sample = DetDataSample(gt_instances=instances)
        sample.set_metainfo(
            dict(img_shape=(96, 96), ori_shape=(96, 96), scale_factor=(1.0, 1.0))
        )
        inputs.append(torch.zeros_like(image) if kind == 'empty' else image)
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def update(model, detector, wrapper, batch):
    """Run one backward pass, and the step if it is due."""
    data = detector.data_preprocessor(batch, training=True)
    with wrapper.optim_context(model):
        losses = model(**data, mode='loss')
    loss, _ = detector.parse_losses(losses)
    wrapper.update_params(loss)


def ddp_rank(kinds):
    """Return Phi and mu by estimator; ``kinds`` gives the images of each rank."""
    results = {}
    for estimator in ('halves', 'replicas'):
        detector = build_detector()
        model = DistributedDataParallel(detector)
        wrapper = make_wrapper(
            detector,
            dict(type='SGD', lr=1e-3),
            estimator=estimator,
            attach_to=model,
        )
        for seed in range(2):
            rank = dist.get_rank()
            update(model, detector, wrapper, make_batch(10 * seed + rank, kinds[rank]))
        results[estimator] = (wrapper.agvm.variances, wrapper.agvm.multipliers)
    return results


@pytest.mark.parametrize('kind', ['boxes', 'no_boxes', 'empty'])
def test_one_rank_without_objects(kind):
    first, second = run_on_ranks(ddp_rank, 2, ('boxes', kind))
    assert first == second
    for variances, multipliers in first.values():
        assert set(variances) == MODULES
        assert all(0 <= phi <= 2 for phi in variances.values()), variances
        assert all(math.isfinite(mu) for mu in multipliers.values())


@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
@pytest.mark.parametrize('kinds', [('boxes', 'no_boxes'), ('empty', 'no_boxes')])
def test_micro_batches_without_objects(estimator, kinds):
    detector = build_detector()
    wrapper = make_wrapper(
        detector,
        dict(type='SGD', lr=1e-3),
        estimator=estimator,
        accumulative_counts=2,
    )
    for seed, kind in enumerate(kinds):
        update(detector, detector, wrapper, make_batch(seed, kind))
    assert wrapper.agvm.num_measurements == 1
    assert all(0 <= phi <= 2 for phi in wrapper.agvm.variances.values())
