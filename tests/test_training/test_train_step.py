"""What a model may do with the optimizer wrapper that its ``train_step`` gets."""

import copy
import gc
import pickle
import weakref
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import FUNCTIONS, HOOKS, MODEL_WRAPPERS, MODELS
from ranks import run_on_ranks
from runners import ImageDataset, make_runner
from torch import nn
from torch.utils.data import default_collate
from toy import ToyDetector

LR = 0.1
PLAIN = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=LR))
WRAPPERS = {
    'plain': PLAIN,
    'halves': dict(PLAIN, type='AGVMOptimWrapper'),
    'replicas': dict(PLAIN, type='AGVMOptimWrapper'),
}


@MODELS.register_module(force=True)
class OwnStepModel(ToyDetector):
    """Model whose ``train_step`` does what a test tells it to."""

    def train_step(self, data, optim_wrapper):
        return own_step(self, self, data, optim_wrapper)


@MODEL_WRAPPERS.register_module(force=True)
class OwnStepDDP(MMDistributedDataParallel):
    """DDP whose ``train_step`` does what a test tells it to."""

    def train_step(self, data, optim_wrapper):
        return own_step(self, self.module, data, optim_wrapper)


def own_step(outer, model, data, optim_wrapper):
    # pseudo_collate of pairs makes tuples.
    data = [list(part) if isinstance(part, tuple) else part for part in data]
    call = model.calls = getattr(model, 'calls', -1) + 1
    return model.behavior(outer, call, data, optim_wrapper)


def loss_of(outer, data, optim_wrapper):
    with optim_wrapper.optim_context(outer):
        return outer(*data, mode='loss')['loss']


def train(
    folder,
    behavior,
    wrapper='plain',
    *,
    ranks=1,
    updates=1,
    hooks=(),
    ddp=(),
    **kwargs,
):
    """Train on updates of 4 micro-batches with 2 images on each rank."""
    own = []
    if wrapper != 'plain':
        own = [dict(type='VarianceSyncHook', interval=1, act=False, estimator=wrapper)]
    if ranks > 1:
        model_wrapper = dict(ddp, type='OwnStepDDP', device_ids=None)
        kwargs |= dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=model_wrapper))
    total = 8 * ranks
    settings = dict(images=total * updates, batch_size=2, shuffle=False) | kwargs
    runner = make_runner(
        Path(folder),
        WRAPPERS[wrapper],
        train_cfg=dict(
            type='LargeBatchTrainLoop', max_epochs=1, total_batch_size=total
        ),
        hooks=[*own, *hooks],
        **dict(model='OwnStepModel') | settings,
    )
    model = getattr(runner.model, 'module', runner.model)
    model.behavior = behavior
    runner.train()
    return runner


def weights(runner):
    return [p.detach().clone() for p in runner.model.parameters()]


def stepped_along(images, of):
    """Return the weights after one step along the mean over some images."""
    model, (inputs, targets) = ToyDetector(), ImageDataset(of).tensors
    model(inputs[images], targets[images])['loss'].backward()
    return [p.detach() - LR * p.grad for p in model.parameters()]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def plain_step(outer, call, data, optim_wrapper):
    loss = loss_of(outer, data, optim_wrapper)
    optim_wrapper.update_params(loss)
    return dict(loss=loss)


# Ranks that skip different micro-batches


def skip_the_second_on_rank_0(outer, call, data, optim_wrapper):
    if call == 1 and dist.get_rank() == 0:
        return dict(loss=torch.tensor(float('nan')))
    return plain_step(outer, call, data, optim_wrapper)


def skipping_ranks(folder):
    results = []
    for name in WRAPPERS:
        runner = train(
            f'{folder}/{dist.get_rank()}/{name}',
            skip_the_second_on_rank_0,
            name,
            ranks=2,
        )
        results.append(weights(runner))
    return results


def test_ranks_that_skip_different_micro_batches_stay_together(tmp_path):
    first, second = run_on_ranks(skipping_ranks, 2, str(tmp_path))
    # Micro-batch k of rank r is images 4k + r and 4k + r + 2.
    images = [i for i in range(16) if i not in (4, 6)]
    for ours, theirs in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert_equal(ours, stepped_along(images, of=16))


def skip_the_last_on_rank_1(outer, call, data, optim_wrapper):
    if call == 3 and dist.get_rank() == 1:
        return None
    return plain_step(outer, call, data, optim_wrapper)


def skipping_the_last(folder, wrapper):
    train(f'{folder}/{dist.get_rank()}', skip_the_last_on_rank_1, wrapper, ranks=2)


@pytest.mark.parametrize('wrapper', ['plain', 'halves'])
def test_last_micro_batch_that_one_rank_skips_stops_all(tmp_path, wrapper):
    results = run_on_ranks(skipping_the_last, 2, str(tmp_path), wrapper, check=False)
    for result in results:
        assert 'but the model skipped it on rank(s) 1 only' in result


def static_graph(folder, wrapper):
    ddp = dict(static_graph=True)
    train(f'{folder}/{dist.get_rank()}', plain_step, wrapper, ranks=2, ddp=ddp)


@pytest.mark.parametrize('wrapper', ['plain', 'halves'])
def test_static_graph_with_micro_batches_is_refused(tmp_path, wrapper):
    for result in run_on_ranks(static_graph, 2, str(tmp_path), wrapper, check=False):
        assert 'static_graph=True with 4 accumulated micro-batches' in result


# Parameters that a hook starts to train


@HOOKS.register_module(force=True)
class TrainOthers(Hook):
    """Unfreeze a part of the backbone, or add a parameter, before the second update."""

    def __init__(self, adds):
        self.adds = adds

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx != 1:
            return
        model = getattr(runner.model, 'module', runner.model)
        if self.adds:
            model.adapter = nn.Parameter(torch.zeros(2, dtype=torch.float64))
            runner.optim_wrapper.optimizer.add_param_group(dict(params=model.adapter))
        else:
            frozen_part(model).requires_grad_(True)


def frozen_part(model):
    return model.backbone[0].bias


@MODELS.register_module(force=True)
class PartlyFrozenModel(OwnStepModel):
    """Model whose backbone is trained but for its bias."""

    def __init__(self):
        super().__init__()
        frozen_part(self).requires_grad_(False)


def train_others(folder, wrapper, adds, ranks):
    train(
        f'{folder}/{dist.get_rank() if ranks > 1 else 0}',
        plain_step,
        wrapper,
        ranks=ranks,
        updates=2,
        hooks=[dict(type='TrainOthers', adds=adds)],
        model='PartlyFrozenModel',
    )


@pytest.mark.parametrize('adds', [True, False], ids=['adds', 'unfreezes'])
@pytest.mark.parametrize('wrapper', ['plain', 'halves'])
def test_parameters_that_ranks_do_not_reduce_are_refused(tmp_path, wrapper, adds):
    results = run_on_ranks(
        train_others, 2, str(tmp_path), wrapper, adds, 2, check=False
    )
    for result in results:
        assert 'frozen or not in the optimizer when the training began' in result


@pytest.mark.parametrize(
    ('wrapper', 'adds'), [('plain', True), ('plain', False), ('halves', False)]
)
def test_one_process_trains_what_a_hook_unfreezes(tmp_path, wrapper, adds):
    train_others(tmp_path, wrapper, adds, 1)


# Ranks with different numbers of images


def uneven_ranks(folder, images):
    sampler = dict(type='DefaultSampler', shuffle=False, round_up=False)
    results = []
    for name in WRAPPERS:
        runner = train(
            f'{folder}/{dist.get_rank()}/{name}',
            plain_step,
            name,
            ranks=2,
            images=images,
            loader=dict(sampler=sampler),
        )
        hub = runner.message_hub
        logged = hub.get_scalar('train/batch_size').data[0].tolist()
        results.append((weights(runner), logged))
    return results


@pytest.mark.parametrize('rest', [7, 3])
def test_ranks_with_different_numbers_of_images(tmp_path, rest):
    first, second = run_on_ranks(uneven_ranks, 2, str(tmp_path), 16 + rest)
    model, (inputs, targets) = ToyDetector(), ImageDataset(16 + rest).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for images in (slice(0, 16), slice(16, 16 + rest)):
        optimizer.zero_grad()
        model(inputs[images], targets[images])['loss'].backward()
        optimizer.step()
    for ours, theirs in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[0], theirs[0], strict=True))
        assert ours[1] == theirs[1] == [16, rest]
    assert_equal(first[0][0], list(model.parameters()))


def test_ranks_with_different_numbers_of_micro_batches_are_refused(tmp_path):
    for result in run_on_ranks(uneven_ranks, 2, str(tmp_path), 16 + 5, check=False):
        assert 'have 5 to 6 micro-batches in an epoch, of 10 to 11 images' in result


# Calls of the optimizer wrapper


def update_twice(outer, call, data, optim_wrapper):
    optim_wrapper.update_params(loss_of(outer, data, optim_wrapper))
    optim_wrapper.update_params(loss_of(outer, data, optim_wrapper))


def call_step(outer, call, data, optim_wrapper):
    optim_wrapper.step()


def call_zero_grad(outer, call, data, optim_wrapper):
    optim_wrapper.zero_grad()


def call_backward(outer, call, data, optim_wrapper):
    optim_wrapper.backward(loss_of(outer, data, optim_wrapper))


@pytest.mark.parametrize('wrapper', ['plain', 'halves'])
@pytest.mark.parametrize(
    ('behavior', 'message'),
    [
        (update_twice, 'train_step called update_params twice for one micro-batch'),
        (call_step, 'OwnStepModel.train_step called step of the optimizer wrapper'),
        (call_zero_grad, 'train_step called zero_grad of the optimizer wrapper'),
        (call_backward, 'train_step called backward of the optimizer wrapper'),
    ],
)
def test_another_step_than_that_of_the_update_is_refused(
    tmp_path, wrapper, behavior, message
):
    with pytest.raises(RuntimeError, match=message):
        train(tmp_path, behavior, wrapper)


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_public_attributes_are_those_of_the_wrapper(tmp_path, wrapper):
    seen = []

    def behavior(outer, call, data, optim_wrapper):
        assert isinstance(optim_wrapper, OptimWrapper)
        assert optim_wrapper.get_lr() == {'lr': [LR]}
        assert optim_wrapper.param_groups[0]['lr'] == LR
        scaled = optim_wrapper.scale_loss(torch.ones(()))
        updates = optim_wrapper.should_update()
        seen.append((scaled.item(), updates, optim_wrapper.should_sync()))
        return plain_step(outer, call, data, optim_wrapper)

    runner = train(tmp_path, behavior, wrapper)
    assert seen == [(0.25, last, last) for last in (False, False, False, True)]
    assert_equal(weights(runner), stepped_along(range(8), of=8))


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_attributes_that_a_model_sets_are_those_of_the_wrapper(
    tmp_path, wrapper, monkeypatch
):
    clips = dict(WRAPPERS[wrapper], clip_grad=dict(max_norm=100))
    monkeypatch.setitem(WRAPPERS, wrapper, clips)

    def behavior(outer, call, data, optim_wrapper):
        optim_wrapper.clip_grad_kwargs = dict(max_norm=1e-3)
        return plain_step(outer, call, data, optim_wrapper)

    runner = train(tmp_path, behavior, wrapper)
    before = ToyDetector().parameters()
    moved = [a - b for a, b in zip(weights(runner), before, strict=True)]
    length = torch.cat([part.flatten() for part in moved]).norm().item()
    assert length == pytest.approx(LR * 1e-3, rel=1e-4)


# Errors that a model catches


class Faulty(torch.autograd.Function):
    """Identity whose backward pass fails."""

    @staticmethod
    def forward(ctx, inputs):
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.cuda.OutOfMemoryError('out of memory')


def fail_in_the_backbone(outer, call, data, optim_wrapper):
    """Fail in the second backward pass, when the heads have their gradients."""
    if call != 1:
        return plain_step(outer, call, data, optim_wrapper)
    with optim_wrapper.optim_context(outer):
        features = Faulty.apply(outer.backbone(data[0]))
        features = outer.neck(torch.tanh(features))
        loss = outer.roi_head['bbox_head'](features).square().mean()
    try:
        optim_wrapper.update_params(loss)
    except torch.cuda.OutOfMemoryError:
        return None


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_half_of_a_backward_pass_is_never_applied(tmp_path, wrapper):
    runner = train(tmp_path, fail_in_the_backbone, wrapper, updates=2)
    assert runner.iter == 2
    # The first update is dropped.
    assert_equal(weights(runner), stepped_along(range(8, 16), of=16))
    (log,) = tmp_path.glob('*/*.log')
    assert (
        'dropped an update: a backward pass failed and left a part' in log.read_text()
    )


# Logged values


class Held(torch.autograd.Function):
    """Identity that tells when its node of the graph is gone."""

    alive: list = []

    @staticmethod
    def forward(ctx, inputs):
        ctx.marker = torch.zeros(1)
        Held.alive.append(weakref.ref(ctx.marker))
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_logged_values_do_not_keep_their_graph(tmp_path):
    Held.alive = []

    def behavior(outer, call, data, optim_wrapper):
        gc.collect()
        assert not any(reference() is not None for reference in Held.alive)
        loss = Held.apply(loss_of(outer, data, optim_wrapper))
        optim_wrapper.update_params(loss)
        return dict(loss=loss)

    train(tmp_path, behavior)
    assert len(Held.alive) == 4


def test_logged_value_is_the_mean_of_those_that_have_it(tmp_path):
    def behavior(outer, call, data, optim_wrapper):
        if call == 2:
            return dict(loss=torch.tensor(float('nan')))
        values = plain_step(outer, call, data, optim_wrapper)
        values['loss'] = torch.tensor(float(call))
        return values | dict(acc=80.0) if call == 1 else values

    runner = train(tmp_path, behavior)
    hub = runner.message_hub
    assert hub.get_scalar('train/loss').current() == pytest.approx((0 + 1 + 3) / 3)
    assert hub.get_scalar('train/acc').current() == 80


def test_logged_value_of_half_precision_is_summed_in_float32(tmp_path):
    def behavior(outer, call, data, optim_wrapper):
        values = plain_step(outer, call, data, optim_wrapper)
        large = torch.tensor(30000.0, dtype=torch.float16)
        fine = torch.tensor(1 + call / 128, dtype=torch.bfloat16)
        return values | dict(loss_large=large, fine=fine)

    hub = train(tmp_path, behavior).message_hub
    assert hub.get_scalar('train/loss_large').current() == 30000
    assert hub.get_scalar('train/fine').current() == 1 + (0 + 1 + 2 + 3) / 4 / 128


def test_data_time_is_that_of_all_micro_batches(tmp_path):
    clock = [0]

    def load(samples):
        clock[0] += 100
        return default_collate(samples)

    FUNCTIONS.register_module(module=load, name='slow_collate', force=True)
    with mock.patch('agvm_mm.training.loops.time.perf_counter', lambda: clock[0]):
        runner = train(
            tmp_path,
            plain_step,
            updates=3,
            loader=dict(collate_fn=dict(type='slow_collate')),
        )
    values, counts = runner.message_hub.get_scalar('train/data_time').data
    assert counts.tolist() == [1, 1, 1]
    assert [value // 100 for value in values] == [4, 4, 4]


@pytest.mark.parametrize('window_size', [1, 3, 10])
def test_speed_is_that_of_updates_of_all_sizes(tmp_path, window_size):
    clock = [0.0]

    def behavior(outer, call, data, optim_wrapper):
        clock[0] += len(data[0]) / 100
        return plain_step(outer, call, data, optim_wrapper)

    timer = SimpleNamespace(time=lambda: clock[0])
    with mock.patch('mmengine.hooks.iter_timer_hook.time', timer):
        runner = make_runner(
            tmp_path,
            PLAIN,
            images=10,
            batch_size=2,
            train_cfg=dict(
                type='LargeBatchTrainLoop', max_epochs=3, total_batch_size=8
            ),
            model='OwnStepModel',
            log_processor=dict(type='LogProcessor', window_size=window_size),
        )
        runner.model.behavior = behavior
        runner.train()
    hub = runner.message_hub
    assert hub.get_scalar('train/batch_size').data[0].tolist() == [8, 2, 8, 2, 8, 2]
    speeds = hub.get_scalar('train/images_per_second').data[0].tolist()
    assert speeds == pytest.approx([100] * 5)


# Hooks around it


@HOOKS.register_module(force=True)
class BatchHook(Hook):
    """Hook that reads and changes the batch as hooks of MMEngine do."""

    def __init__(self, change=None):
        self.change = change

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.change:
            self.change(data_batch)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        inputs, targets = data_batch
        self.seen = inputs, targets


@pytest.mark.parametrize('collate', ['default_collate', 'pseudo_collate'])
@pytest.mark.parametrize('changes', [False, True])
def test_hooks_get_all_images_of_an_update(tmp_path, collate, changes):
    def double(data_batch):
        if collate == 'default_collate':
            data_batch[0] *= 2
        else:
            data_batch[0] = [2 * image for image in data_batch[0]]

    hook = BatchHook(double if changes else None)
    runner = train(
        tmp_path,
        plain_step,
        hooks=[hook],
        loader=dict(collate_fn=dict(type=collate)),
    )
    inputs, targets = ImageDataset(8).tensors
    inputs = 2 * inputs if changes else inputs
    assert torch.equal(torch.stack(list(hook.seen[0])), inputs)
    assert torch.equal(torch.stack(list(hook.seen[1])), targets)
    model = ToyDetector()
    model(inputs, targets)['loss'].backward()
    expected = [p.detach() - LR * p.grad for p in model.parameters()]
    assert_equal(weights(runner), expected)


@pytest.mark.parametrize(('index', 'images'), [(0, 7), (1, 0)])
def test_batch_that_cannot_be_divided_again_is_refused(tmp_path, index, images):
    def shorten(data_batch):
        data_batch[index] = data_batch[index][:images]

    message = rf'images in data_batch\.{index} from 8 to {images}'
    with pytest.raises(ValueError, match=message):
        train(tmp_path, plain_step, hooks=[BatchHook(shorten)])


@FUNCTIONS.register_module(force=True)
def named_collate(samples):
    """Return a mapping with the entries that a test asks for."""
    inputs, targets = default_collate(samples)
    call = named_collate.calls = getattr(named_collate, 'calls', -1) + 1
    return dict(inputs=inputs, targets=targets) | named_collate.extra(call)


@MODELS.register_module(force=True)
class NamedModel(OwnStepModel):
    """Model whose micro-batches are mappings."""

    def train_step(self, data, optim_wrapper):
        images = data['inputs'], data['targets']
        return plain_step(self, 0, images, optim_wrapper)


def train_named(folder, hook, extra=lambda call: {}):
    named_collate.extra = extra
    runner = make_runner(
        Path(folder),
        PLAIN,
        images=16,
        batch_size=2,
        shuffle=False,
        train_cfg=dict(type='LargeBatchTrainLoop', max_epochs=1, total_batch_size=8),
        hooks=[hook],
        model='NamedModel',
        loader=dict(collate_fn=dict(type='named_collate')),
    )
    runner.train()
    return runner


class CallHook(Hook):
    """Hook that calls functions on the batch."""

    def __init__(self, before=lambda batch: None, after=lambda batch: None):
        self.before, self.after = before, after

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before(data_batch)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.after(data_batch)


@pytest.mark.parametrize(
    'change',
    [
        lambda batch: batch.clear(),
        lambda batch: batch.pop('inputs'),
        lambda batch: batch.update(inputs=batch['inputs'][:1]),
        lambda batch: batch.update(extra=1),
    ],
)
def test_batch_of_a_finished_update_may_change_in_any_way(tmp_path, change):
    untouched = weights(train_named(tmp_path / 'untouched', CallHook()))
    changed = weights(train_named(tmp_path / 'changed', CallHook(after=change)))
    assert all(map(torch.equal, changed, untouched))


@pytest.mark.parametrize(
    'duplicate',
    [copy.copy, copy.deepcopy, lambda batch: pickle.loads(pickle.dumps(batch))],
)
def test_copy_of_a_batch_is_a_plain_batch(tmp_path, duplicate):
    copies = []

    def before(batch):
        copies.append(duplicate(batch))

    untouched = weights(train_named(tmp_path / 'untouched', CallHook()))
    copied = weights(train_named(tmp_path / 'copied', CallHook(before)))
    assert all(map(torch.equal, copied, untouched))
    inputs, targets = ImageDataset(16).tensors
    assert [type(each) for each in copies] == [dict, dict]
    assert torch.equal(torch.cat([each['inputs'] for each in copies]), inputs)
    assert torch.equal(torch.cat([each['targets'] for each in copies]), targets)


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        (lambda call: dict(scale=3), r'data_batch.scale \(int\) is no list'),
        (lambda call: dict(source='coco'), r'data_batch.source \(str\) is no list'),
        (lambda call: dict(k=torch.ones(())), r'data_batch.k \(Tensor\) is no list'),
        (lambda call: dict(k=[1, 2]) if call % 2 else {}, 'have different entries'),
    ],
)
def test_batch_that_cannot_be_joined_is_refused_if_a_hook_reads_it(
    tmp_path, extra, message
):
    named_collate.calls = -1
    train_named(tmp_path / 'unread', CallHook(), extra)
    with pytest.raises(ValueError, match=message):
        train_named(tmp_path / 'read', CallHook(lambda b: b['inputs']), extra)


def test_hook_that_reads_the_loader_gets_batches(tmp_path):
    seen = []

    class Reader(Hook):
        def before_train(self, runner):
            for batch in runner.train_dataloader:
                seen.append(batch[0])

    HOOKS.register_module(module=Reader, name='LoaderReader', force=True)
    train(tmp_path, plain_step, updates=2, hooks=[dict(type='LoaderReader')])
    assert torch.equal(torch.cat(seen), ImageDataset(16).tensors[0])
