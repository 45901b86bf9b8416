"""LARS, LAMB and PMD-LAMB against NumPy; AGVM refuses them."""

import copy
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from toy import ToyDetector

import agvm_mm  # noqa: F401

NAMES = ('BaselineLARS', 'BaselineLAMB', 'PMDLAMB')
SHAPES = ((4, 3), (2, 2, 3), (5,))
LR = 0.05


def build(name, params, **kwargs):
    pytest.importorskip('pytorch_optimizer')
    return OPTIMIZERS.build(dict(type=name, params=params, lr=LR, **kwargs))


def make_problem(updates, seed=0):
    """Return initial weights, one of them all zero, and gradients of each update."""
    random = np.random.default_rng(seed)
    weights = [random.normal(size=shape) for shape in SHAPES]
    weights[2][:] = 0
    gradients = [[random.normal(size=s) for s in SHAPES] for _ in range(updates)]
    return weights, gradients


def run_torch(name, updates, **kwargs):
    weights, gradients = make_problem(updates)
    params = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in weights]
    optimizer = build(name, params, **kwargs)
    for update in gradients:
        for param, gradient in zip(params, update, strict=True):
            param.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return [param.detach().numpy() for param in params]


def norm(array):
    return np.sqrt((array**2).sum())


def numpy_lamb(updates, *, weight_decay, period=10**9, moment_decay=1.0):
    weights, gradients = make_problem(updates)
    first = [np.zeros(shape) for shape in SHAPES]
    second = [np.zeros(shape) for shape in SHAPES]
    for t, update in enumerate(gradients):
        for i, g in enumerate(update):
            if t > 0 and t % period == 0:
                first[i] = first[i] * moment_decay
                second[i] = second[i] * moment_decay
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            u = first[i] / (np.sqrt(second[i]) + 1e-6) + weight_decay * weights[i]
            size = min(norm(weights[i]), 10.0)
            ratio = size / norm(u) if size > 0 and norm(u) > 0 else 1.0
            weights[i] = weights[i] - LR * ratio * u
    return weights


def numpy_lars(updates, *, weight_decay):
    weights, gradients = make_problem(updates)
    buffers = [np.zeros(shape) for shape in SHAPES]
    for update in gradients:
        for i, g in enumerate(update):
            if g.ndim > 1:
                size = norm(weights[i])
                ratio = 0.001 * size / (norm(g) + weight_decay * size)
                g = ratio * (g + weight_decay * weights[i])
            buffers[i] = 0.9 * buffers[i] + g
            weights[i] = weights[i] - LR * buffers[i]
    return weights


def test_pmd_lamb_equals_numpy(subtests):
    for (period, decay), weight_decay in product(
        [(3, 0.1), (2, 0.0), (1, 0.5), (4, 1.0)], [0.0, 0.1]
    ):
        with subtests.test(period=period, decay=decay):
            actual = run_torch(
                'PMDLAMB',
                12,
                period=period,
                moment_decay=decay,
                weight_decay=weight_decay,
            )
            expected = numpy_lamb(
                12, period=period, moment_decay=decay, weight_decay=weight_decay
            )
            for a, b in zip(actual, expected, strict=True):
                # The package adds eps = 1e-6 to |u| as well.
                np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize('weight_decay', [0.0, 0.1])
def test_lamb_equals_numpy(weight_decay):
    """Weight decay acts once, inside the trust ratio, and nothing is clipped."""
    actual = run_torch('BaselineLAMB', 12, weight_decay=weight_decay)
    expected = numpy_lamb(12, weight_decay=weight_decay)
    for a, b in zip(actual, expected, strict=True):
        # The package adds eps = 1e-6 to |u| as well.
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize('weight_decay', [0.0, 0.1])
def test_lars_equals_numpy(weight_decay):
    """Weight decay acts once, inside the trust ratio, and not on vectors."""
    actual = run_torch('BaselineLARS', 12, weight_decay=weight_decay)
    expected = numpy_lars(12, weight_decay=weight_decay)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11)


@pytest.mark.parametrize('name', NAMES)
def test_only_the_wrapper_clips_gradients(name):
    """A wrapper that clips equals a plain optimizer on clipped gradients."""

    def step(scale, **wrapper):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(4, 3))
        optimizer = build(name, [parameter], weight_decay=0.1)
        wrapper = OptimWrapper(optimizer, **wrapper)
        for _ in range(3):
            parameter.grad = torch.full((4, 3), scale)
            wrapper.step()
        return parameter.detach()

    clipped = step(100.0, clip_grad=dict(max_norm=12**0.5))
    torch.testing.assert_close(clipped, step(1.0), rtol=1e-5, atol=1e-7)
    # Clipping at 1 inside the optimizer would make these equal.
    if name != 'BaselineLARS':
        weights = [step(scale, clip_grad=None) for scale in (1e-6, 1e-3)]
        assert not torch.allclose(*weights)


@pytest.mark.parametrize(
    'stop, before',
    [
        (5, dict(name='PMDLAMB', period=4)),
        # The settings of the resumed run hold, and up to update 4 all are the same.
        (4, dict(name='PMDLAMB', period=5)),
        (4, dict(name='BaselineLAMB')),
    ],
)
def test_resumed_pmd_lamb_is_bit_identical(stop, before):
    weights, gradients = make_problem(9)

    def make(name='PMDLAMB', **kwargs):
        params = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in weights]
        return params, build(name, params, **kwargs)

    def run(params, optimizer, updates):
        for update in updates:
            for param, gradient in zip(params, update, strict=True):
                param.grad = torch.from_numpy(gradient)
            optimizer.step()

    whole, optimizer = make(period=4)
    run(whole, optimizer, gradients)

    half, optimizer = make(**before)
    run(half, optimizer, gradients[:stop])
    state = copy.deepcopy(optimizer.state_dict())
    resumed, optimizer = make(period=4)
    with torch.no_grad():
        for new, old in zip(resumed, half, strict=True):
            new.copy_(old)
    optimizer.load_state_dict(state)
    run(resumed, optimizer, gradients[stop:])
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))


def test_pmd_lamb_accepts_closure_and_skips_unused_parameters():
    used, unused = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = build('PMDLAMB', [used, unused])

    def closure():
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert not torch.equal(used, torch.ones(2, 2))
    assert torch.equal(unused, torch.ones(2, 2))


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(period=0),
        dict(moment_decay=1.5),
    ],
)
def test_pmd_lamb_refuses_settings_out_of_range(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        build('PMDLAMB', [torch.nn.Parameter(torch.ones(1))], **kwargs)


@pytest.mark.parametrize('name', NAMES)
def test_agvm_refuses_baselines(name):
    """Trust ratios and AGVM's multipliers would counteract each other."""
    pytest.importorskip('pytorch_optimizer')
    cfg = dict(
        type='AGVMOptimWrapper',
        optimizer=dict(type=name, lr=LR),
    )
    with pytest.raises(TypeError, match='defined for Adam, AdamW, SGD'):
        from mmengine.optim import build_optim_wrapper

        model = ToyDetector()
        build_optim_wrapper(model, cfg).make_agvm(model)


@pytest.mark.parametrize('name', NAMES)
def test_plain_wrapper_accepts_baselines(name):
    from mmengine.optim import build_optim_wrapper

    pytest.importorskip('pytorch_optimizer')
    wrapper = build_optim_wrapper(
        ToyDetector(),
        dict(
            type='OptimWrapper',
            optimizer=dict(type=name, lr=LR, weight_decay=0.01),
            paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
        ),
    )
    assert {group['weight_decay'] for group in wrapper.optimizer.param_groups} == {
        0.0,
        0.01,
    }


def test_names_do_not_clash_with_torch():
    """MMEngine registers every optimizer of torch under its own name."""
    assert OPTIM_WRAPPERS.get('AGVMOptimWrapper')
    for name in NAMES:
        assert not hasattr(torch.optim, name)
        assert OPTIMIZERS.get(name).__module__ == 'agvm_mm.optim.baselines'


@pytest.mark.parametrize('name', NAMES)
def test_missing_package_is_reported_with_command(name, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_optimizer', None)
    with pytest.raises(ImportError, match="pip install 'pytorch-optimizer>=4,<5'"):
        OPTIMIZERS.build(
            dict(type=name, params=[torch.nn.Parameter(torch.ones(1))], lr=LR)
        )


def test_pytorch_optimizer_is_imported_only_when_used():
    code = 'import sys, agvm_mm; print("pytorch_optimizer" in sys.modules)'
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split()[-1] == 'False', done.stderr
