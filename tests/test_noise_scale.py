"""noise_scale.py against hand-worked numbers and gradients of known noise."""

import math

import numpy as np
import pytest
import torch

from agvm_mm.method import noise_scale
from agvm_mm.method.noise_scale import (
    ALL,
    NoiseAverages,
    SignalAndNoise,
    extra_images,
    predicted_variance,
    relative_updates,
    saved_updates,
    signal_and_noise_from_halves,
    signal_and_noise_from_replicas,
)
from agvm_mm.method.variance import variance_from_halves, variance_from_replicas
from gpu_check import golden

ESTIMATORS = ['halves', 'replicas']


def estimate(estimator, gradients, images, first=None):
    """Return signal and noise of gradients of shape (replicas, elements)."""
    g = torch.as_tensor(gradients, dtype=torch.float64)
    n = len(g)
    if estimator == 'replicas':
        mean = g.mean(0)
        columns = g.square().sum(1).mean(), mean @ mean, n
        return [float(x) for x in signal_and_noise_from_replicas(*columns, images)]
    first = n // 2 if first is None else first
    a, b = g[:first].mean(0), g[first:].mean(0)
    found = signal_and_noise_from_halves(a @ b, a @ a, b @ b, images, first / n)
    return [float(x) for x in found]


@pytest.mark.parametrize('estimator', ESTIMATORS)
@pytest.mark.parametrize('module', golden.GRADIENTS)
def test_golden_case(estimator, module):
    found = estimate(estimator, golden.GRADIENTS[module], images=4)
    assert found == pytest.approx(golden.SIGNAL_AND_NOISE[estimator][module], abs=1e-12)


def test_golden_case_predicts_its_own_variance():
    for module, expected in golden.VARIANCES['replicas'].items():
        scale = SignalAndNoise(*golden.SIGNAL_AND_NOISE['replicas'][module]).noise_scale
        assert predicted_variance(4, scale) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    'estimator, replicas, first',
    [('halves', 8, 4), ('halves', 5, 2), ('replicas', 8, None), ('replicas', 5, None)],
)
def test_unbiased_on_gradients_of_known_signal_and_noise(estimator, replicas, first):
    rng = np.random.default_rng(0)
    true = rng.normal(size=50)
    per_replica, spread, draws = 3, 6.0, 4000
    found = []
    for _ in range(draws):
        noise = rng.normal(scale=spread, size=(replicas, per_replica, 50)).mean(1)
        images = replicas * per_replica
        found.append(estimate(estimator, true + noise, images, first))
    errors = np.array(found) - (true @ true, 50 * spread**2)
    margin = 4 * errors.std(0) / math.sqrt(draws)
    assert np.all(np.abs(errors.mean(0)) < margin)
    # Not so noisy that any mean would pass.
    assert np.all(margin < 0.1 * np.array([true @ true, 50 * spread**2]))


def test_images_count_where_micro_batches_differ():
    rng = np.random.default_rng(1)
    true, sizes = rng.normal(size=30), np.array([1, 2, 5, 8])
    weights = sizes / sizes.sum()
    found = []
    for _ in range(4000):
        noise = rng.normal(scale=4.0, size=(4, 30)) / np.sqrt(sizes)[:, None]
        g = true + noise
        local, mean = weights @ (g * g).sum(1), weights @ g
        found.append(
            [
                x.item()
                for x in signal_and_noise_from_replicas(
                    torch.tensor(local), torch.tensor(mean @ mean), 4, sizes.sum()
                )
            ]
        )
    assert np.mean(found, axis=0) == pytest.approx([true @ true, 30 * 16], rel=0.03)


@pytest.mark.parametrize('replicas', [2, 4, 16])
def test_variance_of_replicas_is_the_prediction_from_the_same_sums(replicas):
    local, mean = torch.tensor(5.0).double(), torch.tensor(3.0).double()
    signal, noise = signal_and_noise_from_replicas(local, mean, replicas, 64)
    phi = variance_from_replicas(local, mean, replicas).item()
    scale = SignalAndNoise(signal.item(), noise.item()).noise_scale
    assert predicted_variance(64, scale) == pytest.approx(phi, abs=1e-12)


def test_variance_of_equal_halves_is_the_prediction_from_the_same_sums():
    # Two vectors of length 2 with 60 degrees between them.
    dot, square = torch.tensor(2.0).double(), torch.tensor(4.0).double()
    signal, noise = signal_and_noise_from_halves(dot, square, square, 64)
    phi = variance_from_halves(dot, square, square).item()
    scale = SignalAndNoise(signal.item(), noise.item()).noise_scale
    assert phi == pytest.approx(0.5)
    assert predicted_variance(64, scale) == pytest.approx(phi, abs=1e-12)


def test_equal_replicas_have_no_noise():
    for estimator in ESTIMATORS:
        signal, noise = estimate(estimator, [[1.0, 3.0]] * 4, images=4)
        assert (signal, noise) == pytest.approx((10, 0), abs=1e-12)
        assert noise >= 0
    assert predicted_variance(64, 0.0) == 0
    assert extra_images(64, 0.0) == 1
    assert saved_updates(64, 0.0) == 0


@pytest.mark.parametrize('signal', [0.0, -1.0, math.nan])
def test_signal_that_is_not_above_zero_is_not_resolved(signal):
    scale = SignalAndNoise(signal, 2.0).noise_scale
    assert math.isnan(scale)
    assert math.isnan(predicted_variance(64, scale))


def test_cost_of_a_batch():
    # At the noise scale the updates are twice the fewest possible.
    assert relative_updates(1000, 1000) == 2
    # From 500 to 1000: 3 to 2 times the fewest updates, 1.5 to 2 times the images.
    assert saved_updates(1000, 1000) == pytest.approx(1 / 3)
    assert extra_images(1000, 1000) == pytest.approx(1 / 3)
    # Far below the noise scale a double batch halves the updates for nothing.
    assert saved_updates(1, 1e9) == pytest.approx(0.5)
    assert extra_images(1, 1e9) == pytest.approx(0, abs=1e-6)
    # Far above, it saves nothing and doubles the images.
    assert saved_updates(1e9, 1) == pytest.approx(0, abs=1e-6)
    assert extra_images(1e9, 1) == pytest.approx(1)


def test_averages_of_a_constant_are_that_constant_from_the_first_measurement():
    averages = NoiseAverages()
    for _ in range(3):
        averages.update({'head': SignalAndNoise(2.0, 6.0)}, 0.1)
        assert averages.averages()['head'] == pytest.approx((2.0, 6.0))
        assert averages.noise_scales()['head'] == pytest.approx(3.0)


def test_averages_weigh_measurements_by_age():
    averages, measured = NoiseAverages(), [(1.0, 5.0), (-3.0, 6.0), (4.0, 9.0)]
    for signal, noise in measured:
        averages.update({'head': SignalAndNoise(signal, noise)}, 0.1)
    weights = noise_scale.MOMENTUM ** np.arange(2, -1, -1)
    expected = weights @ np.array(measured) / weights.sum()
    assert averages.averages()['head'] == pytest.approx(tuple(expected))


def test_network_is_the_sum_of_its_modules_and_a_missing_module_keeps_its_average():
    averages = NoiseAverages()
    assert averages.averages() == {}
    averages.update({'a': SignalAndNoise(1.0, 10.0), 'b': SignalAndNoise(3.0, 2.0)}, 1)
    averages.update({'a': SignalAndNoise(1.0, 10.0)}, 1)
    assert averages.averages()['b'] == pytest.approx((3.0, 2.0))
    assert averages.noise_scales()[ALL] == pytest.approx(12 / 4)


def test_averages_resume():
    averages, resumed = NoiseAverages(), NoiseAverages()
    averages.update({'a': SignalAndNoise(1.0, 10.0)}, 1)
    resumed.update({'gone': SignalAndNoise(1.0, 1.0)}, 1)
    resumed.load_state_dict(averages.state_dict())
    for each in (averages, resumed):
        each.update({'a': SignalAndNoise(2.0, 5.0)}, 0.6)
    assert resumed.averages() == averages.averages()


def test_averages_start_again_after_a_step_of_the_learning_rate():
    averages, resumed = NoiseAverages(), NoiseAverages()
    averages.update({'a': SignalAndNoise(100.0, 100.0)}, learning_rate=0.1)
    averages.update({'a': SignalAndNoise(50.0, 150.0)}, learning_rate=0.06)
    assert averages.noise_scales()['a'] > 1
    assert averages.averages()['a'].signal > 50
    resumed.load_state_dict(averages.state_dict())
    for each in (averages, resumed):
        each.update({'a': SignalAndNoise(1.0, 20.0)}, learning_rate=0.03)
        assert each.averages()['a'] == pytest.approx((1.0, 20.0))
