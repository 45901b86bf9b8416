"""One process: replicas are the micro-batches of an accumulated update."""

import numpy as np
import pytest
import torch
from toy import OPTIMIZERS, ToyDetector, make_images, make_wrapper

from agvm_mm.estimators.micro_batches import passes_of_a_replica
from agvm_mm.method.modules import assign_modules
from gpu_check import golden
from gpu_check.reference import ReferenceAGVM


@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
def test_golden_case(estimator):
    model = golden.GoldenModel()
    wrapper = make_wrapper(model, estimator=estimator, accumulative_counts=4)
    for replica in range(4):
        wrapper.update_params(model(replica))
    expected = golden.VARIANCES[estimator]
    assert wrapper.agvm.variances == pytest.approx(expected, abs=1e-9)
    assert wrapper.agvm.multipliers['backbone'] == 1
    head = golden.MULTIPLIER[estimator]
    assert wrapper.agvm.multipliers['head'] == pytest.approx(head, abs=1e-7)


def train(model, wrapper, updates, micro_batches, seed=0):
    """Train on new images; return the gradients of each update's replicas."""
    parameters = dict(model.named_parameters())
    history = []
    for update in range(updates):
        inputs, targets = make_images(4 * micro_batches, seed=seed + update)
        shards = list(zip(inputs.split(4), targets.split(4), strict=True))
        replicas = []
        for x, y in shards:
            gradients = torch.autograd.grad(
                model(x, y)['loss'], parameters.values(), allow_unused=True
            )
            replicas.append(
                {
                    name: (torch.zeros_like(p) if g is None else g).numpy()
                    for (name, p), g in zip(parameters.items(), gradients, strict=True)
                }
            )
        history.append(replicas)
        for x, y in shards:
            wrapper.update_params(model(x, y)['loss'])
    return history


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
@pytest.mark.parametrize('micro_batches', [2, 3, 5])
def test_matches_independent_reference(optimizer, estimator, micro_batches):
    model = ToyDetector()
    initial = {k: p.detach().numpy().copy() for k, p in model.named_parameters()}
    wrapper = make_wrapper(
        model,
        optimizer,
        estimator=estimator,
        accumulative_counts=micro_batches,
        schedule=dict(interval=2, begin=3),
    )
    reference = ReferenceAGVM(
        initial,
        assign_modules(model),
        optimizer=optimizer,
        lr=OPTIMIZERS[optimizer]['lr'],
        weight_decay=OPTIMIZERS[optimizer]['weight_decay'],
        estimator=estimator,
        interval=2,
        begin=3,
    )
    for replicas in train(model, wrapper, 20, micro_batches):
        reference.step(replicas)
    assert wrapper.agvm.variances == pytest.approx(reference.variances, abs=1e-10)
    assert wrapper.agvm.multipliers == pytest.approx(reference.multipliers, abs=1e-10)
    # One image in each micro-batch.
    for name, (signal, noise) in reference.noise_averages().items():
        expected = signal, micro_batches * noise
        assert wrapper.agvm.noise.averages()[name] == pytest.approx(expected, rel=1e-9)
    assert min(
        abs(mu - 1) for m, mu in wrapper.agvm.multipliers.items() if m != 'backbone'
    )
    for name, p in model.named_parameters():
        np.testing.assert_allclose(
            p.detach().numpy(), reference.parameters[name], rtol=0, atol=1e-10
        )


@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
def test_measuring_does_not_change_gradients(estimator):
    gradients = []
    for interval in (1, 1000):
        model = ToyDetector()
        wrapper = make_wrapper(
            model,
            estimator=estimator,
            accumulative_counts=3,
            schedule=dict(interval=interval, begin=0 if interval == 1 else 1),
        )
        seen = {}

        def record(seen=seen, model=model):
            seen.update((n, p.grad.clone()) for n, p in model.named_parameters())

        wrapper.optimizer.register_step_pre_hook(lambda *_, record=record: record())
        train(model, wrapper, 1, 3)
        gradients.append(seen)
    measured, plain = gradients
    assert all(torch.equal(measured[name], plain[name]) for name in plain)


@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
def test_module_without_gradient_is_not_measured(estimator):
    model = ToyDetector(use_mask_head=False)
    wrapper = make_wrapper(model, estimator=estimator, accumulative_counts=2)
    train(model, wrapper, 3, 2)
    assert set(wrapper.agvm.variances) == {'backbone', 'neck', 'bbox_head'}
    assert wrapper.agvm.multipliers['mask_head'] == 1


@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
def test_module_with_gradient_in_one_micro_batch(estimator):
    model = ToyDetector()
    wrapper = make_wrapper(model, estimator=estimator, accumulative_counts=2)
    for use_mask_head in (False, True):
        model.use_mask_head = use_mask_head
        wrapper.update_params(model(*make_images(4))['loss'])
    assert wrapper.agvm.variances['mask_head'] == pytest.approx(1)


@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
def test_shared_head_with_reentrant_checkpointing(estimator):
    from torch.utils.checkpoint import checkpoint

    variances = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=True)):
        model = ToyDetector()
        wrapper = make_wrapper(model, estimator=estimator, accumulative_counts=2)
        for seed in range(2):
            inputs, targets = make_images(4, seed)
            inputs.requires_grad_()
            x = torch.tanh(run(model.backbone, inputs))
            levels = [run(model.neck, level) for level in (x, 2 * x)]
            outputs = [run(model.roi_head['bbox_head'], level) for level in levels]
            wrapper.update_params(sum((o - targets).square().mean() for o in outputs))
        variances.append(wrapper.agvm.variances)
    assert variances[0] == pytest.approx(variances[1], abs=1e-12)


@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
def test_short_last_update_of_mmengine(estimator):
    # 5 iterations, 3 micro-batches an update: the second update has 2.
    model = ToyDetector()
    wrapper = make_wrapper(model, estimator=estimator, accumulative_counts=3)
    wrapper.initialize_count_status(model, 0, 5)
    x, y = make_images(20)
    shards = list(zip(x.split(4), y.split(4), strict=True))
    for shard in shards[:3]:
        wrapper.update_params(model(*shard)['loss'])
    parameters = list(model.backbone.parameters())
    own = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(model(*s)['loss'], parameters)]
        )
        for s in shards[3:]
    ]
    for shard in shards[3:]:
        wrapper.update_params(model(*shard)['loss'])
    assert wrapper.agvm.num_updates == 2
    a, b = own
    expected = {
        'halves': 1 - (a @ b / a.norm() / b.norm()).item(),
        'replicas': 1 - (2 * (a @ b) / (a @ a + b @ b)).item(),
    }
    assert wrapper.agvm.variances['backbone'] == pytest.approx(
        expected[estimator], abs=1e-12
    )


def test_update_of_one_micro_batch_is_not_measured():
    model = ToyDetector()
    wrapper = make_wrapper(model, estimator='replicas', accumulative_counts=3)
    wrapper.initialize_count_status(model, 0, 4)
    for seed in range(4):
        wrapper.update_params(model(*make_images(4, seed))['loss'])
    assert (wrapper.agvm.num_updates, wrapper.agvm.num_measurements) == (2, 1)


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
def test_large_parameters_are_measured_in_pieces(monkeypatch, optimizer, estimator):
    variances = []
    for piece in (1_000_000, 7):
        monkeypatch.setattr('agvm_mm.estimators.preconditioner.CPU_PIECE', piece)
        model = ToyDetector()
        wrapper = make_wrapper(
            model, optimizer, estimator=estimator, accumulative_counts=2
        )
        train(model, wrapper, 3, 2)
        variances.append(wrapper.agvm.variances)
    whole, in_pieces = variances
    assert in_pieces == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(
    'passes, expected', [(2, 1), (32, 1), (64, 2), (97, 1), (100, 4)]
)
def test_many_micro_batches_are_few_replicas(passes, expected):
    assert passes_of_a_replica(passes) == expected


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
def test_replicas_are_groups_of_micro_batches(optimizer):
    found = []
    for passes in (64, 32):
        model = ToyDetector()
        wrapper = make_wrapper(
            model, optimizer, estimator='replicas', accumulative_counts=passes
        )
        inputs, targets = make_images(64, seed=0)
        size = 64 // passes
        for x, y in zip(inputs.split(size), targets.split(size), strict=True):
            wrapper.update_params(model(x, y)['loss'])
        found.append(wrapper.agvm.variances)
        assert wrapper.agvm.num_updates == 1
    assert found[0] == pytest.approx(found[1], rel=1e-9)
