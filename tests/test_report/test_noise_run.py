"""replicas.py: gradients of a toy model, one process and two ranks, rescaling."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.datasets import BaseVideoDataset
from mmengine.config import Config
from ranks import run_on_ranks
from runners import make_runner
from torch.utils.data import DataLoader, TensorDataset
from toy import ToyDetector, make_images

from agvm_mm.estimators.preconditioner import build_preconditioner
from agvm_mm.method.modules import trainable_by_module
from agvm_mm.report.gradient_noise import replicas
from agvm_mm.report.gradient_noise.intervals import GradientSums, divide_replicas

REPLICAS, IMAGES = 70, 3


def make_setup(optimizer: str, amsgrad: bool, ranks: int, rank: int) -> SimpleNamespace:
    """Return what one rank measures of the toy model, as replicas.Setup."""
    torch.manual_seed(0)
    model = ToyDetector()
    kwargs = dict(amsgrad=True) if amsgrad else {}
    built = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01, **kwargs)
    for seed in (1, 2):
        model(*make_images(8, seed))['loss'].backward()
        built.step()
        built.zero_grad()
    blocks, size = divide_replicas(REPLICAS, ranks)
    inputs, targets = make_images(REPLICAS * IMAGES, seed=7)
    own = blocks * size * IMAGES // ranks
    part = slice(rank * own, (rank + 1) * own)
    return SimpleNamespace(
        model=model,
        by_module=trainable_by_module(model),
        preconditioner=build_preconditioner(built),
        found=None,
        batches=DataLoader(TensorDataset(inputs[part], targets[part]), IMAGES),
        blocks=blocks,
        block_size=size,
        images_per_replica=IMAGES,
        anchor='backbone',
    )


def all_gradients(setup: SimpleNamespace, scale: Callable) -> dict[str, np.ndarray]:
    """Return the gradients of all replicas by module, (replicas, elements)."""
    rows: dict[str, list] = {name: [] for name in setup.by_module}
    for inputs, targets in setup.batches:
        loss = setup.model(inputs, targets)['loss']
        for name, parameters in setup.by_module.items():
            found = torch.autograd.grad(loss, parameters, retain_graph=True)
            flat = [
                scale(p, g).flatten() for p, g in zip(parameters, found, strict=True)
            ]
            rows[name].append(torch.cat(flat).numpy())
    return {name: np.stack(each) for name, each in rows.items()}


@pytest.mark.parametrize(
    'optimizer, amsgrad',
    [('SGD', False), ('AdamW', False), ('Adam', True)],
)
def test_sums_are_those_of_all_gradients(optimizer: str, amsgrad: bool):
    setup = make_setup(optimizer, amsgrad, 1, 0)
    before = {k: v.clone() for k, v in setup.model.state_dict().items()}
    count = []
    sums = replicas.measure(setup, lambda: count.append(1))
    assert (len(count), sums.blocks, sums.block_size) == (68, 17, 4)
    assert sums.images == 204
    for name, value in setup.model.state_dict().items():
        assert torch.equal(value, before[name])

    def scale(parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        if optimizer == 'SGD':
            return gradient
        state = setup.preconditioner._optimizer.state[parameter]
        v = state['max_exp_avg_sq' if amsgrad else 'exp_avg_sq']
        return gradient / (v.sqrt() + 1e-8)

    for index, g in enumerate(all_gradients(setup, scale).values()):
        blocks = g[:68].reshape(17, 4, -1)
        expected = [
            (blocks.reshape(17, 4 // k, k, -1).mean(2) ** 2).sum(2).mean(1)
            for k in (1, 2, 4)
        ]
        np.testing.assert_allclose(sums.group_sq[index], expected, rtol=1e-9)
        means = blocks.mean(1)
        np.testing.assert_allclose(sums.gram[index], means @ means.T, rtol=1e-7)


def measure_on_rank() -> GradientSums:
    """Measure this rank's half of the replicas."""
    rank = torch.distributed.get_rank()
    return replicas.measure(make_setup('AdamW', False, 2, rank))


def test_two_ranks_equal_one_process():
    results = run_on_ranks(measure_on_rank, 2)
    setup = make_setup('AdamW', False, 2, 0)
    whole = make_setup('AdamW', False, 1, 0)
    # One process on the same blocks.
    whole.blocks, whole.block_size = setup.blocks, setup.block_size
    expected = replicas.measure(whole)
    assert (expected.blocks, expected.replicas) == (16, 64)
    for result in results:
        torch.testing.assert_close(result.group_sq, expected.group_sq)
        torch.testing.assert_close(result.gram, expected.gram)


def test_model_with_its_own_train_step_and_a_module_without_gradient():
    setup = make_setup('SGD', False, 1, 0)
    model = setup.model
    model.use_mask_head = False

    def train_step(data: list, optim_wrapper: replicas.BackwardOnly) -> dict:
        with optim_wrapper.optim_context(model):
            loss = model(*data)['loss']
        optim_wrapper.update_params(loss / 2)
        optim_wrapper.update_params(model(*data)['loss'] / 2)
        return {}

    model.train_step = train_step
    sums = replicas.measure(setup)
    assert set(setup.by_module) - set(sums.modules) == {'mask_head'}
    assert len(sums.group_sq) == len(sums.gram) == len(sums.modules)
    setup.anchor = 'mask_head'
    with pytest.raises(ValueError, match="no loss reaches the anchor 'mask_head'"):
        replicas.measure(setup)


class TwoVideos(BaseVideoDataset):
    """Has eight frames in each."""

    def load_data_list(self) -> list[dict]:
        return [dict(images=[{}] * 8, video_length=8, video_id=n) for n in range(2)]

    def filter_data(self) -> list[dict]:
        return self.data_list


def test_images_of_videos_are_their_frames():
    sampler = dict(type='mmdet.TrackImgSampler')
    loader = dict(sampler=sampler, num_workers=0, dataset=TwoVideos())
    cfg = Config(dict(train_dataloader=loader))
    found = replicas.load_batches(cfg, 8, 2).batch_sampler
    frames = [frame for batch in found for frame in batch]
    assert sorted(frames) == [(video, n) for video in range(2) for n in range(8)]
    with pytest.raises(ValueError, match='--images 18, but the training set has 16'):
        replicas.load_batches(cfg, 9, 2)


@pytest.mark.parametrize('buffers', [False, True])
def test_weights_are_those_that_are_trained(buffers: bool, tmp_path: Path):
    ema = dict(type='EMAHook', momentum=0.5, update_buffers=buffers)
    runner = make_runner(
        tmp_path,
        dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
        images=16,
        batch_size=4,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        checkpoint=dict(type='CheckpointHook', interval=1),
        hooks=[ema],
    )
    runner.train()
    found = ToyDetector()
    replicas.load_weights(found, str(tmp_path / 'epoch_1.pth'))
    averages = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict']
    for name, weight in runner.model.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight)
        assert not torch.equal(averages[name], weight)
    # As published, by the first releases of MMEngine.
    mean = {'data_preprocessor.mean': torch.zeros(3, 1, 1)}
    torch.save(dict(meta={}, state_dict=averages | mean), tmp_path / 'published.pth')
    replicas.load_weights(found, str(tmp_path / 'published.pth'))
    for name, weight in averages.items():
        assert torch.equal(found.state_dict()[name], weight)


def test_gradient_that_is_not_finite_is_refused():
    setup = make_setup('SGD', False, 1, 0)
    with torch.no_grad():
        setup.model.roi_head['bbox_head'].bias[0] = float('nan')
    with pytest.raises(FloatingPointError, match='gradient of .* is not finite'):
        replicas.measure(setup)
