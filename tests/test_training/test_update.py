"""Updates close themselves; random numbers depend on seed, rank and update."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import DATA_SAMPLERS, HOOKS, MODEL_WRAPPERS, MODELS
from ranks import run_on_ranks
from runners import ImageDataset, make_runner
from torch.utils.data import BatchSampler, RandomSampler
from toy import ToyDetector

from agvm_mm.training.loading import allow_runner_checkpoints

SGD = dict(type='SGD', lr=0.05, momentum=0.9)
PLAIN = dict(type='OptimWrapper', optimizer=SGD)
AGVM = dict(PLAIN, type='AGVMOptimWrapper')
ESTIMATORS = ['halves', 'replicas']


def on_ranks(wrapper='MMDistributedDataParallel'):
    """Return arguments of a Runner on the ranks of the process group."""
    cfg = dict(model_wrapper_cfg=dict(type=wrapper, device_ids=None))
    return dict(launcher='pytorch', cfg=cfg)


@MODELS.register_module(force=True)
class FaultyModel(ToyDetector):
    """Model that skips some of its micro-batches or is interrupted at one."""

    def __init__(self, skipped=(), interrupted=None):
        super().__init__()
        self.skipped, self.interrupted = skipped, interrupted
        self.calls = 0

    def count_call(self):
        call, self.calls = self.calls, self.calls + 1
        if call == self.interrupted:
            raise KeyboardInterrupt
        return call in self.skipped

    def train_step(self, data, optim_wrapper):
        if self.count_call():
            return dict(loss=torch.tensor(float('nan')))
        return super().train_step(data, optim_wrapper)


@HOOKS.register_module(force=True)
class RecordGradients(Hook):
    """Hook that records the gradients of each step."""

    steps: list = []

    def before_train(self, runner):
        type(self).steps = []
        model = getattr(runner.model, 'module', runner.model)
        runner.optim_wrapper.optimizer.register_step_pre_hook(
            lambda *_: self.steps.append([p.grad.clone() for p in model.parameters()])
        )


@MODEL_WRAPPERS.register_module(force=True)
class FaultyDDP(MMDistributedDataParallel):
    """DDP that skips the micro-batches that its model skips."""

    def train_step(self, data, optim_wrapper):
        if self.module.count_call():
            return dict(loss=torch.tensor(float('nan')))
        return super().train_step(data, optim_wrapper)


def make(
    work_dir, wrapper, *, train_cfg=None, estimator='replicas', model=(), **kwargs
):
    """Build a run of two updates with four micro-batches of 4 images each."""
    hooks = [dict(type='RecordGradients')]
    if wrapper['type'] == 'AGVMOptimWrapper':
        hooks.append(dict(type='VarianceSyncHook', interval=1, estimator=estimator))
    runner = make_runner(
        work_dir,
        wrapper,
        images=32,
        batch_size=4,
        train_cfg=train_cfg
        or dict(type='LargeBatchTrainLoop', max_epochs=1, total_batch_size=16),
        hooks=hooks,
        shuffle=False,
        model='FaultyModel',
        **kwargs,
    )
    model_of(runner).__dict__.update(model)
    return runner


def model_of(runner):
    return getattr(runner.model, 'module', runner.model)


def gradient(model, kept):
    """Return the mean gradient over some micro-batches of 4 images."""
    inputs, targets = ImageDataset(32).tensors
    images = [4 * k + i for k in kept for i in range(4)]
    loss = model(inputs[images], targets[images])['loss']
    return torch.autograd.grad(loss, list(model.parameters()))


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def expected_phi(kept, estimator):
    """Return Phi of the backbone over some micro-batches of the first update."""
    model = ToyDetector()
    count = len(list(model.backbone.parameters()))
    own = torch.stack(
        [torch.cat([g.flatten() for g in gradient(model, [k])[:count]]) for k in kept]
    )
    if estimator == 'halves':
        # Four micro-batches were announced: the first two that come are one half.
        a, b = own[:2].mean(0), own[2:].mean(0)
        return (1 - a @ b / a.norm() / b.norm()).item()
    local, mean = own.square().sum(1).mean(), own.mean(0).square().sum()
    return (2 * (local - mean) / ((len(own) - 2) * mean + local)).item()


@pytest.mark.parametrize('skipped', [(0,), (3,), (1, 2), (0, 1, 3)])
@pytest.mark.parametrize('estimator', [None, *ESTIMATORS])
def test_update_is_the_mean_over_the_micro_batches_that_came(
    tmp_path, estimator, skipped
):
    wrapper = AGVM if estimator else PLAIN
    runner = make(tmp_path, wrapper, estimator=estimator, model=dict(skipped=skipped))
    runner.train()
    kept = [k for k in range(4) if k not in skipped]
    assert runner.iter == len(RecordGradients.steps) == 2
    assert_equal(RecordGradients.steps[0], gradient(ToyDetector(), kept))
    if estimator is None:
        return
    # Halves need a micro-batch after the second, replicas two.
    measured = len(kept) > (2 if estimator == 'halves' else 1)
    wrapper = runner.optim_wrapper
    assert (wrapper.agvm.num_updates, wrapper.agvm.num_measurements) == (
        2,
        1 + measured,
    )
    assert wrapper.agvm.num_skipped_measurements == 0
    if measured:
        logged = runner.message_hub.get_scalar('agvm/phi_backbone').data[0]
        assert logged[0] == pytest.approx(expected_phi(kept, estimator), abs=1e-12)


@pytest.mark.parametrize('wrapper', [PLAIN, AGVM], ids=['plain', 'agvm'])
def test_update_without_any_backward_pass_is_dropped_and_counted(tmp_path, wrapper):
    runner = make(tmp_path, wrapper, model=dict(skipped=range(4)))
    before = [p.clone() for p in runner.model.parameters()]
    runner.train()
    assert runner.iter == 2 and len(RecordGradients.steps) == 1
    expected = FaultyModel()
    assert_equal(before, expected.parameters())
    assert_equal(RecordGradients.steps[0], gradient(expected, [4, 5, 6, 7]))
    if wrapper is AGVM:
        assert runner.optim_wrapper.agvm.num_updates == 2
    (log,) = tmp_path.glob('*/*.log')
    assert 'dropped an update: none of its micro-batches' in log.read_text()


def skipping_rank(folder):
    """Skip the first, then the last micro-batch of an update on both ranks."""
    results = []
    for skipped in ((0,), (1,)):
        runner = make(
            Path(folder, str(skipped), str(dist.get_rank())),
            AGVM,
            model=dict(skipped=skipped),
            **on_ranks('FaultyDDP'),
        )
        runner.train()
        results.append((RecordGradients.steps, runner.optim_wrapper.agvm.num_updates))
    return results


def test_skipped_micro_batches_on_ranks(tmp_path):
    for first, last in run_on_ranks(skipping_rank, 2, str(tmp_path)):
        assert first[1] == last[1] == 2
        # The two micro-batches of a rank are every other image of 0..7 and of 8..15.
        assert len(first[0]) == 2
        assert_equal(first[0][0], gradient(FaultyModel(), [2, 3]))
        # The last micro-batch reduces the gradients: without it there is no update.
        assert len(last[0]) == 1


@pytest.mark.parametrize('interrupted', [1, 3, 6])
@pytest.mark.parametrize('estimator', [None, *ESTIMATORS])
def test_training_after_an_interruption_starts_a_clean_update(
    tmp_path, estimator, interrupted
):
    wrapper = AGVM if estimator else PLAIN
    runner = make(
        tmp_path, wrapper, estimator=estimator, model=dict(interrupted=interrupted)
    )
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    done = runner.iter
    weights = FaultyModel()
    weights.load_state_dict(runner.model.state_dict())
    runner.train()
    assert runner.iter == 2
    first = range(4 * done, 4 * done + 4)
    assert_equal(RecordGradients.steps[0], gradient(weights, first))
    if estimator:
        assert runner.optim_wrapper.agvm.num_updates == 2


@pytest.mark.parametrize('estimator', ESTIMATORS)
@pytest.mark.parametrize('resumed_at', [2, 3])
def test_resuming_within_an_update_of_mmengine(tmp_path, estimator, resumed_at):
    """MMEngine loses the gradients before; the step is on those that come."""
    allow_runner_checkpoints()
    cfg = dict(type='IterBasedTrainLoop', max_iters=8)
    steps = []
    for name, wrapper in (('plain', PLAIN), ('agvm', AGVM)):
        folder = tmp_path / name
        settings = dict(wrapper, accumulative_counts=4)
        checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=1)
        make(
            folder, settings, train_cfg=cfg, estimator=estimator, checkpoint=checkpoint
        ).train()
        runner = make(
            folder,
            settings,
            train_cfg=cfg,
            estimator=estimator,
            load_from=str(folder / f'iter_{resumed_at}.pth'),
            resume=True,
        )
        runner.train()
        steps.append(RecordGradients.steps)
    # AGVM changes the learning rates, so only the first step is the same.
    assert_equal(steps[1][0], steps[0][0])
    wrapper = runner.optim_wrapper
    assert wrapper.agvm.num_skipped_measurements == 0
    assert all(0 < phi < 2 for phi in wrapper.agvm.variances.values())


@MODELS.register_module(force=True)
class RandomModel(ToyDetector):
    """Model that records the random numbers of its micro-batches."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def forward(self, inputs, data_samples=None, mode='loss'):
        self.drawn.append(torch.rand(()).item())
        self.images = inputs
        return super().forward(inputs, data_samples, mode)


def random_rank(folder):
    runner = make_runner(
        Path(folder, str(dist.get_rank())),
        PLAIN,
        images=32,
        batch_size=4,
        train_cfg=dict(type='LargeBatchTrainLoop', max_epochs=2, total_batch_size=16),
        model='RandomModel',
        **on_ranks(),
    )
    runner.train()
    return runner.model.module.drawn


def test_ranks_draw_different_random_numbers(tmp_path):
    first, second = run_on_ranks(random_rank, 2, str(tmp_path))
    assert len(first) == 8
    assert len({*first, *second}) == 16


@MODELS.register_module(force=True)
class ImagesModel(ToyDetector):
    """Model that records its images."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, inputs, data_samples=None, mode='loss'):
        self.seen += inputs[:, 0].tolist()
        return super().forward(inputs, data_samples, mode)


@DATA_SAMPLERS.register_module(force=True)
class GlobalRandomSampler(RandomSampler):
    """Sampler of a plain DataLoader with ``shuffle=True``."""

    def __init__(self, dataset, shuffle, seed):
        super().__init__(dataset)


class InterruptOnce(Hook):
    """Hook that interrupts the training before an update, the first time."""

    def __init__(self, update):
        self.update = update

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.update:
            self.update = None
            raise KeyboardInterrupt


@pytest.mark.parametrize('stop', [3, 4, 7])
@pytest.mark.parametrize(
    'train_cfg, sampler',
    [
        # Its shuffling draws from the global generator.
        (dict(type='LargeBatchTrainLoop', max_epochs=3), 'GlobalRandomSampler'),
        (dict(type='LargeBatchIterTrainLoop', max_iters=9), 'GlobalRandomSampler'),
        (dict(type='LargeBatchIterTrainLoop', max_iters=9), 'InfiniteSampler'),
    ],
)
def test_resumed_or_continued_run_sees_the_same_images(
    tmp_path, train_cfg, sampler, stop
):
    def make(folder, **kwargs):
        return make_runner(
            folder,
            PLAIN,
            images=24,
            batch_size=4,
            train_cfg=dict(train_cfg, total_batch_size=8),
            sampler=sampler,
            model='ImagesModel',
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1),
            **kwargs,
        )

    whole = make(tmp_path)
    whole.train()
    assert len(set(whole.model.seen[:24])) == 24
    assert whole.model.seen[:24] != whole.model.seen[24:48]
    torch.manual_seed(stop)
    resumed = make(tmp_path, load_from=str(tmp_path / f'iter_{stop}.pth'), resume=True)
    resumed.train()
    assert resumed.model.seen == whole.model.seen[8 * stop :]

    continued = make(tmp_path / 'continued')
    continued.register_hook(InterruptOnce(stop))
    with pytest.raises(KeyboardInterrupt):
        continued.train()
    continued.train()
    assert continued.model.seen == whole.model.seen
    for runner in (resumed, continued):
        for p, q in zip(
            runner.model.parameters(), whole.model.parameters(), strict=True
        ):
            assert torch.equal(p, q)


@DATA_SAMPLERS.register_module(force=True)
class ShortBatchSampler(BatchSampler):
    """Batch sampler that yields fewer batches than its length, or of fewer images."""

    def __init__(self, sampler, batch_size, fewer, first=4):
        super().__init__(sampler, batch_size, drop_last=False)
        self.fewer, self.first = fewer, first

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number < len(self) - self.fewer:
                yield batch[: self.first] if number < 3 else batch


BY_ITERATIONS = dict(type='LargeBatchIterTrainLoop', max_iters=8, total_batch_size=8)
BY_EPOCHS = dict(type='LargeBatchTrainLoop', max_epochs=3, total_batch_size=8)


def make_passes(
    work_dir, fewer, train_cfg=BY_ITERATIONS, by_epoch=False, first=4, **kwargs
):
    return make_runner(
        work_dir,
        PLAIN,
        images=24,
        batch_size=4,
        train_cfg=train_cfg,
        model='ImagesModel',
        checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch, interval=1),
        loader=dict(
            batch_sampler=dict(type='ShortBatchSampler', fewer=fewer, first=first)
        ),
        **kwargs,
    )


@pytest.mark.parametrize('stop', [3, 5])
def test_resumed_run_counts_the_updates_that_passes_had(tmp_path, stop):
    make = partial(make_passes, tmp_path, 2)
    whole = make()
    whole.train()
    # Passes of 2 updates; the length gives 3.
    assert len(set(whole.model.seen[:16])) == 16 > len(set(whole.model.seen[8:24]))
    path = str(tmp_path / f'iter_{stop}.pth')
    resumed = make(load_from=path, resume=True)
    resumed.train()
    assert resumed.model.seen == whole.model.seen[8 * stop :]
    # Nor is an update left out that was interrupted.
    again = make(load_from=path, resume=True)
    again.model.register_forward_hook(interrupt_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        again.train()
    again.model._forward_hooks.clear()
    again.model.seen.clear()
    again.train()
    assert again.model.seen == resumed.model.seen[8:]


def test_resumed_run_counts_updates_of_fewer_images(tmp_path):
    for train_cfg in (BY_ITERATIONS, BY_EPOCHS):
        make = partial(make_passes, tmp_path, 0, train_cfg, first=1)
        whole = make()
        whole.train()
        # Updates of 2, 5 and 8 images.
        resumed = make(load_from=str(tmp_path / 'iter_5.pth'), resume=True)
        resumed.train()
        assert resumed.model.seen == whole.model.seen[15 + 7 :]


def test_run_goes_on_in_another_loop(tmp_path):
    make = partial(make_passes, tmp_path, 0)
    whole = make(BY_EPOCHS)
    whole.train()
    path, images = str(tmp_path / 'iter_{}.pth'), whole.model.seen
    later = make(BY_ITERATIONS, load_from=path.format(2), resume=True)
    later.train()
    assert later.model.seen == images[16:64]
    later = make(BY_EPOCHS, load_from=path.format(4), resume=True)
    later.train()
    assert later.model.seen == images[32:]
    assert (later.iter, later.epoch) == (9, 3)

    # Updates of another batch begin after the same images.
    other = BY_ITERATIONS | dict(total_batch_size=4, allow_resume_mismatch=True)
    later = make(other, load_from=path.format(4), resume=True)
    later.train()
    assert later.model.seen == images[32:48]

    # A loop of MMEngine keeps stored values, which are old when its epoch ends.
    plain = dict(type='EpochBasedTrainLoop', max_epochs=2)
    make(plain, by_epoch=True, load_from=path.format(5), resume=True).train()
    resume = dict(load_from=str(tmp_path / 'epoch_2.pth'), resume=True)
    with pytest.raises(ValueError, match='images of an update: not stored'):
        make(BY_EPOCHS, **resume).train()
    later = make(BY_EPOCHS | dict(allow_resume_mismatch=True), **resume)
    later.train()
    assert later.model.seen == images[48:]


def interrupt_at_the_second(model, args, output):
    if len(model.seen) == 12:
        raise KeyboardInterrupt
