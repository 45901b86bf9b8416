"""AGVMAmpOptimWrapper on a CPU.

MMEngine's AmpOptimWrapper requires an accelerator. This check is patched here, and
torch's scaler for CPUs is used.
"""

import copy
import itertools
from unittest import mock

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from toy import OPTIMIZERS, ToyDetector, make_images, make_wrapper

from agvm_mm.estimators import build_estimator
from agvm_mm.estimators.preconditioner import Preconditioner
from agvm_mm.method.modulator import MeasurementSchedule
from agvm_mm.training.summary import describe_precision

SCALES_ON_CPU = hasattr(torch.amp, 'GradScaler')
needs_scaler = pytest.mark.skipif(
    not SCALES_ON_CPU, reason='before 2.3 torch scales losses on GPUs only'
)


def make(optimizer='SGD', estimator='halves', scale=2.0**10, dtype='float64', **kwargs):
    """Return a toy detector in float32 and its AMP wrapper with two micro-batches."""
    model = ToyDetector().float()

    def scaler(**settings):
        if SCALES_ON_CPU:
            return torch.amp.GradScaler('cpu', **settings)
        return torch.cuda.amp.GradScaler(**settings)  # Does nothing without a GPU.

    settings = dict(
        type='AGVMAmpOptimWrapper',
        optimizer=dict(OPTIMIZERS[optimizer]),
        accumulative_counts=2,
        loss_scale=dict(init_scale=scale, growth_interval=3),
        dtype=dtype,
        **kwargs,
    )
    with (
        mock.patch.object(amp_optimizer_wrapper, 'is_cuda_available', lambda: True),
        mock.patch.object(amp_optimizer_wrapper, 'GradScaler', scaler),
    ):
        wrapper = build_optim_wrapper(model, settings)
    agvm = wrapper.make_agvm(model)
    built = build_estimator(
        estimator, agvm.preconditioner, agvm.parameters, model, accumulation=2
    )
    agvm.attach(built, MeasurementSchedule(interval=1))
    return model, wrapper


def update(model, wrapper, seed, spoil=1.0, dtype=None):
    for micro_batch in range(2):
        x, y = make_images(4, seed=2 * seed + micro_batch)
        x, y = x.float(), y.float()
        with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
            loss = model(x, y)['loss']
        wrapper.update_params(loss.float() * spoil)


@needs_scaler
@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
def test_phi_does_not_depend_on_the_loss_scale(optimizer, estimator):
    runs = []
    for scale in (1.0, 2.0**16):
        model, wrapper = make(optimizer, estimator, scale)
        history = []
        for seed in range(5):
            update(model, wrapper, seed)
            history.append(wrapper.agvm.variances)
        assert wrapper.loss_scaler.get_scale() == 2 * scale, 'the scale never grew'
        runs.append((history, wrapper.agvm.multipliers, wrapper.agvm.noise.averages()))
    (plain, plain_mu, plain_noise), (scaled, scaled_mu, scaled_noise) = runs
    for one, other in zip(plain, scaled, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert plain_mu == pytest.approx(scaled_mu, abs=1e-5)
    assert len(set(plain_mu.values())) == 4
    for name, values in plain_noise.items():
        assert scaled_noise[name] == pytest.approx(values, rel=1e-3, abs=1e-9)


@needs_scaler
def test_overflow_changes_neither_mu_nor_parameters():
    model, wrapper = make()
    update(model, wrapper, 0)
    before = (
        wrapper.agvm.multipliers,
        wrapper.agvm.variances,
        wrapper.agvm.noise.averages(),
    )
    parameters = [p.clone() for p in model.parameters()]
    scale = wrapper.loss_scaler.get_scale()
    update(model, wrapper, 1, spoil=1e38)
    now = (
        wrapper.agvm.multipliers,
        wrapper.agvm.variances,
        wrapper.agvm.noise.averages(),
    )
    assert now == before
    assert wrapper.agvm.num_skipped_measurements == 1
    assert wrapper.loss_scaler.get_scale() == scale / 2
    assert all(map(torch.equal, parameters, model.parameters()))
    update(model, wrapper, 2)
    assert wrapper.agvm.num_measurements == 2
    assert wrapper.agvm.num_updates == 3


@needs_scaler
def test_fused_momentum_with_a_loss_scale_is_refused(monkeypatch):
    for settings in (dict(fused=True, momentum=0.0), dict(fused=False)):
        monkeypatch.setitem(OPTIMIZERS, 'tried', OPTIMIZERS['SGD'] | settings)
        make('tried')
    monkeypatch.setitem(OPTIMIZERS, 'tried', OPTIMIZERS['SGD'] | dict(fused=True))
    with pytest.raises(TypeError, match='fused=True with momentum and a loss scale'):
        make('tried')


@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
def test_norms_of_half_precision_gradients_do_not_overflow(estimator):
    # The squares of these gradients are above 65504, the largest number in float16.
    model = torch.nn.Module()
    model.backbone = torch.nn.Linear(64, 1, bias=False).half()
    by_module = dict(backbone=[model.backbone.weight])
    measured = build_estimator(
        estimator, Preconditioner(), by_module, model, accumulation=2
    )
    measured.start(2)
    gradients = torch.randn(2, 1, 64).half() * 3000
    total = torch.zeros(1, 64).half()
    for gradient in gradients:
        so_far = model.backbone.weight.grad
        own = gradient / 2
        model.backbone.weight.grad = own if so_far is None else so_far + own
        measured.record(0.5)
        total += own
    phi = measured.finish()['backbone'].variance
    a, b = gradients.double().flatten(1)
    expected = {
        'halves': 1 - (a @ b / a.norm() / b.norm()).item(),
        'replicas': 1 - (2 * (a @ b) / (a @ a + b @ b)).item(),
    }
    assert phi == pytest.approx(expected[estimator], abs=2e-3)
    torch.testing.assert_close(model.backbone.weight.grad, total)


def test_bfloat16_autocast_is_close_to_full_precision():
    phis = []
    for dtype in (None, torch.bfloat16):
        model, wrapper = make(scale=1.0)
        update(model, wrapper, 0, dtype=dtype)
        phis.append(wrapper.agvm.variances)
    assert phis[0] == pytest.approx(phis[1], abs=0.05)
    assert phis[0] != phis[1]


@needs_scaler
def test_state_contains_agvm_and_loss_scaler():
    model, wrapper = make()
    for seed in range(4):
        update(model, wrapper, seed)
    state = copy.deepcopy(wrapper.state_dict())
    other_model, other = make(scale=3.0)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(state)
    assert other.loss_scaler.get_scale() == wrapper.loss_scaler.get_scale()
    for model_, wrapper_ in ((model, wrapper), (other_model, other)):
        update(model_, wrapper_, 9)
    assert other.state_dict()['agvm'] == wrapper.state_dict()['agvm']
    assert all(map(torch.equal, model.parameters(), other_model.parameters()))


def test_unscaled_gradients_are_clipped_in_the_window_only():
    norms = {}
    for window in (None, (1, 2)):
        model, wrapper = make(
            scale=2.0**12, clip_grad=dict(max_norm=0.01), clip_window=window
        )
        norms[window] = []

        def record(*_, model=model, norms=norms[window]):
            gradients = [p.grad.flatten() for p in model.parameters()]
            norms.append(torch.cat(gradients).norm().item())

        wrapper.optimizer.register_step_pre_hook(record)
        for seed in range(4):
            update(model, wrapper, seed)
    assert norms[None] == pytest.approx([0.01] * 4, rel=1e-3)
    clipped = [norm < 0.011 for norm in norms[1, 2]]
    assert clipped == [False, True, True, False]


def test_summary_says_float32_or_mixed():
    _, wrapper = make()
    assert describe_precision(wrapper) == 'mixed'
    assert describe_precision(make_wrapper(ToyDetector().float())) == 'float32'
    assert describe_precision(make_wrapper(ToyDetector())) == 'float64'


def test_every_optimizer_and_estimator_builds():
    for optimizer, estimator in itertools.product(OPTIMIZERS, ('halves', 'replicas')):
        _, wrapper = make(optimizer, estimator)
        assert type(wrapper).__name__ == 'AGVMAmpOptimWrapper'
