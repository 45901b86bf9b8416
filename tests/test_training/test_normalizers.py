"""Losses divided by the normalizers of whole updates: one batch is the judge."""

import copy
import logging
import random
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmdet.models.losses import GHMC
from mmdet.utils import dist_utils
from mmengine.dataset import pseudo_collate
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from ranks import run_on_ranks
from runners import make_runner as engine_runner
from small_models import (
    annotated_images,
    float64_and_first_boxes,
    small_config,
    small_model,
)
from torch import nn
from torch.utils.data import DataLoader, Dataset
from toy import ToyDetector

from agvm_mm.estimators import build_estimator
from agvm_mm.estimators.preconditioner import Preconditioner
from agvm_mm.method.modulator import MeasurementSchedule
from agvm_mm.method.modules import trainable_by_module
from agvm_mm.report.gradient_noise.replicas import measure
from agvm_mm.training.dataloader import UpdateWindow
from agvm_mm.training.loss_counts import examine
from agvm_mm.training.normalizers import (
    STATE,
    Normalizers,
    count_normalizers,
    find_normalizers,
    unwrap,
)
from agvm_mm.training.update import Update

COUNT = 'agvm_mm.training.normalizers.count_normalizers'
IMAGES = 16
LAYOUTS = ([1] * 16, [2] * 8, [7, 6, 2, 1])
"""Images of each micro-batch."""
IGNORING = dict(
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True)
)
LINES = dict(average='their average over updates', update='those of an update')
ONE = {'RetinaNet': True, 'FCOS': False, 'ATSS': False, 'Mask R-CNN': False}
"""Whether all losses have the same normalizer."""
FAMILIES = [
    'RetinaNet',
    'FCOS',
    'Mask R-CNN',
    pytest.param('ATSS', marks=pytest.mark.evidence),
    pytest.param('Semantic FPN', marks=pytest.mark.evidence),
]


class Hub:
    """Message hub of a run, in memory."""

    def __init__(self):
        self.runtime_info = {}

    def update_info(self, name, value):
        self.runtime_info[name] = value


def make_runner(model, hub=None):
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0))
    return SimpleNamespace(
        model=model,
        message_hub=hub or Hub(),
        cfg={},
        optim_wrapper=wrapper,
        logger=logging.getLogger('normalizers'),
    )


def build(name):
    return small_model(name, **(IGNORING if name == 'Semantic FPN' else {}))


def one_update(runner, normalizers, images, sizes):
    """Return gradients and log of one update on images of this rank."""
    start, batches = 0, []
    for size in sizes:
        batches.append(pseudo_collate(copy.deepcopy(images[start : start + size])))
        start += size
    model, ranks = runner.model, 1
    if dist.is_initialized():
        ranks = dist.get_world_size()
    found = {}

    def record(*_):
        for name, parameter in unwrap(model).named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.clone()

    handle = runner.optim_wrapper.optimizer.register_step_pre_hook(record)
    total = sum(sizes) * ranks
    update = Update(model, runner.optim_wrapper, sizes, total)
    window = UpdateWindow(iter(batches), list(sizes))
    torch.manual_seed(0)
    with normalizers.of_update(runner, window) as micro_batches:
        for _ in sizes:
            update.train_step(next(micro_batches))
    log = update.finish(normalizers.correction)
    handle.remove()
    return found, log


def run(model, mode, images, sizes, updates=1, hub=None):
    """Return gradients and log of the last of some updates."""
    runner, normalizers = make_runner(model, hub), Normalizers(mode)
    normalizers.prepare(runner)
    for number in range(updates):
        shift = 5 * number  # Each update has its images in another order.
        own = images[shift:] + images[:shift]
        result = one_update(runner, normalizers, own[: sum(sizes)], sizes)
    return result


def apart(found, expected):
    """Return the relative L2 difference of gradients."""
    assert found.keys() == expected.keys()
    difference = sum((found[n] - expected[n]).square().sum() for n in expected)
    size = sum(each.square().sum() for each in expected.values())
    return (difference / size).sqrt().item()


@pytest.fixture
def float64():
    with float64_and_first_boxes():
        yield


@pytest.mark.parametrize('name', FAMILIES)
def test_update_is_that_of_one_batch(name, float64):
    model, images = build(name), annotated_images(name, IMAGES)
    expected, expected_log = run(model, 'micro_batch', images, [IMAGES])
    for sizes in LAYOUTS:
        plain, _ = run(model, 'micro_batch', images, sizes)
        assert apart(plain, expected) > 1e-3
        found, log = run(model, 'update', images, sizes)
        assert apart(found, expected) < 1e-7
        assert log.keys() == expected_log.keys()
        for key, value in log.items():
            if 'loss' in key:
                torch.testing.assert_close(value, expected_log[key], rtol=1e-6, atol=0)


@pytest.mark.parametrize('name', FAMILIES)
def test_average_is_equal_on_every_layout(name, float64):
    model, images = build(name), annotated_images(name, IMAGES)
    expected, _ = run(model, 'average', images, [8], updates=2)
    own, _ = run(model, 'micro_batch', images, [8], updates=2)
    for sizes in ([1] * 8, [4, 3, 1]):
        found, _ = run(model, 'average', images, sizes, updates=2)
        assert apart(found, expected) < 1e-7
    assert 1e-3 < apart(expected, own) < 0.5


def without_objects(images):
    """Return images with the annotations of none."""
    images = copy.deepcopy(images)
    for image in images:
        sample = image['data_samples']
        if 'gt_instances' in sample:
            sample.gt_instances = sample.gt_instances[:0]
        else:
            sample.gt_sem_seg.data.fill_(255)
    return images


def test_average_follows_earlier_updates(float64):
    model, key = build('RetinaNet'), 'bbox_head.loss_cls'
    images = annotated_images('RetinaNet', 11)
    counts, runner, normalizers = [], make_runner(model), Normalizers('average')
    normalizers.prepare(runner)
    for image in images:
        single = Hub()
        run(model, 'average', [image], [1], hub=single)
        counts.append(single.runtime_info[STATE][0][key])
    with mock.patch(COUNT, wraps=count_normalizers) as counted:
        for image in images:
            one_update(runner, normalizers, [image], [1])
    # The mean of all as far as an update has a share of a tenth or more.
    expected = 0.9 * np.mean(counts[:10]) + 0.1 * counts[10]
    assert len(set(counts)) > 3
    found, updates = runner.message_hub.runtime_info[STATE]
    assert found[key] == pytest.approx(expected, rel=1e-12)
    assert (updates, counted.call_count) == (11, 9)


@pytest.mark.parametrize('before', [['update'], ['average', 'micro_batch']])
def test_average_of_a_resumed_run_begins_with_its_updates(before, float64):
    """The checkpoint of a run with 'update' has the normalizers of one update."""
    model, images = build('RetinaNet'), annotated_images('RetinaNet', 4)
    runner, others = make_runner(model), without_objects(images)
    for mode in before:
        normalizers = Normalizers(mode)
        normalizers.prepare(runner)
        for _ in range(10):
            one_update(runner, normalizers, others, [2, 2])
    normalizers = Normalizers('average')
    normalizers.prepare(runner)
    found, _ = one_update(runner, normalizers, images, [2, 2])
    expected, _ = run(model, 'average', images, [4])
    assert apart(found, expected) < 1e-7


@pytest.mark.parametrize('mode', ['average', 'update'])
@pytest.mark.parametrize('name', ['RetinaNet', 'FCOS', 'Semantic FPN'])
def test_first_update_without_objects(name, mode, float64):
    """It is no scale for those after it."""
    model, images = build(name), annotated_images(name, 4)
    runner, normalizers = make_runner(model), Normalizers(mode)
    normalizers.prepare(runner)
    one_update(runner, normalizers, without_objects(images), [2, 2])
    expected, _ = run(model, 'micro_batch', images, [4])
    for _ in range(2):
        found, _ = one_update(runner, normalizers, images, [2, 2])
        # RetinaNet counts one object for each image without.
        is_mean = (name, mode) == ('RetinaNet', 'average')
        assert apart(found, expected) < (1.0 if is_mean else 1e-7)


def test_average_without_what_updates_do_not_call(float64):
    model, images = build('Mask R-CNN'), annotated_images('Mask R-CNN', 4)
    runner, normalizers = make_runner(model), Normalizers('average')
    normalizers.prepare(runner)
    single, found = Hub(), []
    run(model, 'update', images, [2, 2], hub=single)
    for each in (without_objects(images), images, without_objects(images)):
        one_update(runner, normalizers, each, [2, 2])
        normalizer, _ = runner.message_hub.runtime_info[STATE]
        found.append(normalizer['roi_head.bbox_head.loss_bbox'])
    own = single.runtime_info[STATE][0]['roi_head.bbox_head.loss_bbox']
    assert found == pytest.approx([0, own, own], rel=1e-12)
    assert own > 1


@pytest.mark.parametrize('mode', ['average', 'update'])
def test_update_that_is_not_finite_leaves_no_trace(mode, float64):
    """As after an overflow in float16, whose step the loss scaler skips."""
    model, images = build('FCOS'), annotated_images('FCOS', 8)
    weights, head = copy.deepcopy(model.state_dict()), model.bbox_head
    gradients = []
    for overflows in (False, True):
        runner, normalizers = make_runner(model), Normalizers(mode)
        normalizers.prepare(runner)
        one_update(runner, normalizers, images[:4], [2, 2])
        if overflows:
            targets = head.centerness_target
            with mock.patch.object(
                head, 'centerness_target', lambda each, of=targets: of(each) * np.nan
            ):
                _, log = one_update(runner, normalizers, images[:4], [2, 2])
            assert not log['loss_bbox'].isfinite()
            model.load_state_dict(weights)
        gradients.append(one_update(runner, normalizers, images[4:], [2, 2])[0])
    assert apart(*gradients) == 0


def test_warns_where_a_head_may_clamp(float64, caplog):
    model, images = build('FCOS'), annotated_images('FCOS', 8)
    images[1:] = without_objects(images[1:])
    first = images[0]['data_samples']
    first.gt_instances = first.gt_instances[:1]
    expected, _ = run(model, 'micro_batch', images, [8])
    for sizes, near in (([4, 4], True), ([1] * 8, False)):
        assert 'at least 1' not in caplog.text
        found, _ = run(model, 'update', images, sizes, updates=2)
        assert (apart(found, expected) < 1e-6) is near
    (warning,) = [text for text in caplog.messages if 'at least 1' in text]
    assert warning == (
        "normalizers='update': the head takes at least 1 of what reduce_mean gives, "
        'which is 0.38 for 1 image(s), so its losses are too small; use 3 images or '
        'more in a micro-batch'
    )


@pytest.mark.parametrize(
    ('name', 'size'), [('RetinaNet', 1), ('FCOS', 1), ('VFNet', 4), ('Mask R-CNN', 1)]
)
def test_micro_batches_without_objects(name, size, float64):
    """FCOS and R-CNNs do not call the loss of their boxes for them."""
    model, images = build(name), annotated_images(name, 6 * size)
    within = 1e-7
    if name == 'VFNet':  # Its loss of these is divided by 0. It counts in float32.
        model.bbox_head.sync_num_pos, within = False, 1e-6
    for index in (1, 3, 4):
        part = slice(index * size, (index + 1) * size)
        images[part] = without_objects(images[part])
    expected, _ = run(model, 'micro_batch', images, [6 * size])
    found, _ = run(model, 'update', images, [size] * 6)
    plain, _ = run(model, 'micro_batch', images, [size] * 6)
    assert apart(plain, expected) > 1e-2
    assert apart(found, expected) < within


def rank_update(names):
    results = {}
    torch.set_num_threads(1)
    with float64_and_first_boxes():
        for name in names:
            for mode in ('micro_batch', 'update', 'average'):
                model = MMDistributedDataParallel(build(name), device_ids=None)
                ranks = dist.get_world_size()
                own = annotated_images(name, 4 * ranks)[dist.get_rank() :: ranks]
                results[name, mode] = run(model, mode, own, [2, 1, 1])[0]
    return results


@pytest.mark.parametrize('ranks', [2, pytest.param(4, marks=pytest.mark.evidence)])
def test_ranks_are_one_batch(ranks):
    names, count = ['RetinaNet', 'FCOS'], 4 * ranks
    results = run_on_ranks(rank_update, ranks, names)
    with float64_and_first_boxes():
        for name in names:
            model, images = build(name), annotated_images(name, count)
            expected, _ = run(model, 'micro_batch', images, [count])
            for found in results:
                assert apart(found[name, 'micro_batch'], expected) > 1e-3
                assert apart(found[name, 'update'], expected) < 1e-7
                # The first update is counted.
                assert apart(found[name, 'average'], expected) < 1e-7


def test_examination_of_each_family(float64):
    for name, expected in ONE.items():
        found = examine(build(name))
        assert found.is_one is expected
        assert found.unreached == ()
    assert found.terms == ('loss_mask',)  # Mask R-CNN, the last one.
    assert found.per_image.keys() >= {'roi_head.mask_head.loss_mask'}
    for name in ('Semantic FPN', 'Faster R-CNN'):  # Means over images.
        assert examine(small_model(name)).per_image == {}
    # MMDetection's detectors with a teacher move it in `to`.
    model = build('FCOS')
    with mock.patch.object(type(model), 'to', autospec=True) as move:
        move.side_effect = lambda copied, device: copied
        examine(model)
    assert [call.args[1] for call in move.call_args_list] == ['cpu']


def test_warns_of_what_it_does_not_reach(caplog):
    """A Lovasz loss sorts the pixels of the whole micro-batch."""
    lovasz = dict(type='LovaszLoss', reduction='none', loss_name='loss_lovasz')
    losses = [IGNORING['loss_decode'], lovasz]
    model = small_model('Semantic FPN', loss_decode=losses).float()
    runner = make_runner(model)
    Normalizers('average').prepare(runner)
    assert (
        "normalizers='average' does not reach decode.loss_lovasz of EncoderDecoder: "
        'they still depend on how images are divided into micro-batches'
    ) in caplog.text
    # More of the hardest pixels than the random images have, but not the data.
    sampler = dict(type='OHEMPixelSampler', min_kept=100000)
    model = small_model('Semantic FPN', sampler=sampler).float()
    assert examine(model).unreached == ('decode.loss_ce',)
    assert model.decode_head.sampler.min_kept == 100000
    # It counts in a buffer, so that no pass gives the loss of another one.
    model = small_model('RetinaNet').float()
    model.bbox_head.loss_cls = GHMC(bins=30, momentum=0.75)
    assert examine(model).unreached == ('loss_cls',)
    # One of its parts follows the labels of all images so far.
    cfg = small_config('Faster R-CNN')
    cfg.roi_head.bbox_head.loss_cls = dict(type='SeesawLoss', num_classes=4)
    cfg.train_cfg.rcnn.sampler.num = 1024  # More than there are proposals.
    cfg.train_cfg.rpn_proposal.update(nms_pre=2000, max_per_img=1000)
    torch.manual_seed(0)
    found = examine(MODELS.build(cfg))
    assert found.unreached == ('loss_cls_classes',)
    assert {'loss_cls_objectness', 'loss_cls_classes'} <= set(found.terms)


class MovingMean(nn.Module):
    """Has another tensor as its buffer after each pass, as EMANet and EQLv2."""

    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.ones(()))

    def forward(self, features):
        self.mean = 0.9 * self.mean + 0.1 * features[0].detach().mean()
        return features


def test_nothing_stays(float64):
    model = build('FCOS')
    model.neck = nn.Sequential(model.neck, MovingMean())
    for module in model.modules():  # Buffers that a forward pass changes.
        module.train()
    images = annotated_images('FCOS', 2)
    runner, normalizers = make_runner(model), Normalizers('update')
    torch.manual_seed(3)
    before = copy.deepcopy(model.state_dict())
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    normalizers.prepare(runner)
    batches = [pseudo_collate([image]) for image in images]
    window = UpdateWindow(iter(batches), [1, 1])
    with pytest.raises(ZeroDivisionError), normalizers.of_update(runner, window):
        assert dist_utils.dist is not dist
        # The counting pass is done.
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), key
        raise ZeroDivisionError
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert dist_utils.dist is dist
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ([None, False], 'ToyDetector is a model of neither'),
        # MMEngine compiles with both.
        ([True, {}], 'does not work with compile'),
    ],
)
def test_refuses_what_it_does_not_know(settings, message):
    runner = make_runner(ToyDetector())
    for compiles in settings:
        runner.cfg['compile'] = compiles
        with pytest.raises(TypeError, match=message):
            Normalizers('average').prepare(runner)
        Normalizers('micro_batch').prepare(runner)


def test_refuses_another_reduce_mean():
    runner = make_runner(small_model('FCOS'))
    with (
        mock.patch.object(dist_utils, 'reduce_mean', lambda tensor: tensor),
        pytest.raises(TypeError, match='reduce_mean of this MMDetection'),
    ):
        Normalizers('update').prepare(runner)


def test_refuses_an_unknown_mode():
    with pytest.raises(ValueError, match="got 'batch'"):
        Normalizers('batch')


@DATASETS.register_module()
class NormalizersDataset(Dataset):
    """Images of a small detector, in float32."""

    def __init__(self, images):
        self.samples = annotated_images('RetinaNet', images)
        for sample in self.samples:
            boxes = sample['data_samples'].gt_instances
            boxes.bboxes = boxes.bboxes.float()

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return copy.deepcopy(self.samples[index])


def train(folder, mode, max_iters, **kwargs):
    settings = dict(type='SGD', lr=0.01, momentum=0.9)
    runner = engine_runner(
        folder,
        dict(type='OptimWrapper', optimizer=settings),
        images=12,
        batch_size=2,
        train_cfg=dict(
            type='LargeBatchIterTrainLoop',
            max_iters=max_iters,
            total_batch_size=6,
            normalizers=mode,
        ),
        sampler='InfiniteSampler',
        model=small_model('RetinaNet').float(),
        dataset='NormalizersDataset',
        loader=dict(collate_fn=dict(type='pseudo_collate')),
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
        **kwargs,
    )
    runner.train()
    return runner


@pytest.mark.parametrize('mode', ['average', 'update'])
def test_resumes_to_the_last_bit(tmp_path, mode):
    whole = train(tmp_path / 'whole', mode, 4)
    train(tmp_path / 'first', mode, 2)
    checkpoint = str(tmp_path / 'first' / 'iter_2.pth')
    resumed = train(tmp_path / 'second', mode, 4, load_from=checkpoint, resume=True)
    state = whole.message_hub.runtime_info[STATE]
    assert state[0].keys() == {'bbox_head.loss_cls', 'bbox_head.loss_bbox'}
    assert resumed.message_hub.runtime_info[STATE] == state
    expected = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    log = ''.join(path.read_text() for path in (tmp_path / 'whole').glob('*/*.log'))
    assert f'losses    divided by normalizers of an image: {LINES[mode]}' in log


def phi(mode, size):
    """Return Phi of each module at one update of 16 images."""
    model = build('RetinaNet')
    optimizer = dict(type='SGD', lr=0.0)
    wrapper = build_optim_wrapper(
        model, dict(type='AGVMOptimWrapper', optimizer=optimizer)
    )
    agvm = wrapper.make_agvm(model)
    estimator = build_estimator(
        'halves', agvm.preconditioner, agvm.parameters, model, accumulation=16 // size
    )
    measured = []
    agvm.attach(estimator, MeasurementSchedule(interval=1), measured.append)
    runner, normalizers = make_runner(model), Normalizers(mode)
    runner.optim_wrapper = wrapper
    normalizers.prepare(runner)
    images = annotated_images('RetinaNet', IMAGES)
    one_update(runner, normalizers, images, [size] * (IMAGES // size))
    return measured[0].variances


def sums_of_tool(mode, size):
    """Return what tools/noise_scale.py finds at 16 images, in blocks of 4."""
    model = build('RetinaNet')
    found = None if mode == 'micro_batch' else find_normalizers(model, mode)
    images = annotated_images('RetinaNet', IMAGES)
    setup = SimpleNamespace(
        model=model,
        by_module=trainable_by_module(model),
        preconditioner=Preconditioner(),
        found=found,
        batches=DataLoader(images, size, collate_fn=copied),
        blocks=4,
        block_size=4 // size,
        images_per_replica=size,
        anchor='backbone',
    )
    before = copy.deepcopy(model.state_dict())
    sums = measure(setup)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    return sums


def copied(images):
    return pseudo_collate(copy.deepcopy(images))


@pytest.mark.parametrize('mode', ['average', 'update'])
def test_variance_is_equal_with_replicas_of_any_size(mode, float64):
    expected, sums = phi(mode, 4), sums_of_tool(mode, 4)
    for size in (1, 2):
        assert phi(mode, size) == pytest.approx(expected, rel=1e-6)
        found = sums_of_tool(mode, size)
        torch.testing.assert_close(found.gram, sums.gram, rtol=1e-6, atol=0)
        # The mean of replicas is the gradient of all their images.
        groups = found.group_sq[:, -1]
        torch.testing.assert_close(groups, sums.group_sq[:, 0], rtol=1e-6, atol=0)
    assert phi('micro_batch', 1) != pytest.approx(phi('micro_batch', 4), rel=1e-2)
    own = sums_of_tool('micro_batch', 1).group_sq[:, -1] / sums.group_sq[:, 0]
    assert (own - 1).abs().min() > 1e-2
