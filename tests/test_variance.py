"""variance.py against hand-worked numbers and sampling."""

from itertools import product

import numpy as np
import pytest
import torch

from agvm_mm.method.variance import (
    products_of_halves,
    variance_from_halves,
    variance_from_replicas,
)
from gpu_check import golden


@pytest.mark.parametrize('module', golden.GRADIENTS)
def test_halves_of_golden_case(module):
    g = torch.tensor(golden.GRADIENTS[module], dtype=torch.float64)
    first, second = g[:2].mean(0), g[2:].mean(0)
    phi = variance_from_halves(first @ second, first @ first, second @ second)
    assert phi.item() == pytest.approx(golden.VARIANCES['halves'][module], abs=1e-10)


@pytest.mark.parametrize('module', golden.GRADIENTS)
def test_replicas_of_golden_case(module):
    local = torch.tensor(golden.LOCAL_SQ[module])
    mean = torch.tensor(golden.MEAN_SQ[module])
    phi = variance_from_replicas(local.double(), mean.double(), 4)
    assert phi.item() == pytest.approx(golden.VARIANCES['replicas'][module], abs=1e-10)


def test_two_replicas_give_symmetric_cosine():
    g1, g2 = torch.randn(2, 7, dtype=torch.float64)
    local = (g1 @ g1 + g2 @ g2) / 2
    mean = ((g1 + g2) / 2).square().sum()
    expected = 1 - 2 * (g1 @ g2) / (g1 @ g1 + g2 @ g2)
    assert variance_from_replicas(local, mean, 2).item() == pytest.approx(
        expected.item(), abs=1e-14
    )


def test_estimates_agree_on_average_and_replicas_is_less_noisy():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=200)
    halves, replicas = [], []
    for _ in range(400):
        g = torch.from_numpy(signal + 3 * rng.normal(size=(8, 200)))
        a, b = g[:4].mean(0), g[4:].mean(0)
        halves.append(variance_from_halves(a @ b, a @ a, b @ b).item())
        mean = g.mean(0)
        replicas.append(
            variance_from_replicas(g.square().sum(1).mean(), mean @ mean, 8).item()
        )
    assert np.mean(halves) == pytest.approx(np.mean(replicas), abs=0.02)
    assert np.std(replicas) < 0.85 * np.std(halves)


def squares_of(g, first):
    """Return |a G_A|^2, |b G_B|^2 and |a G_A + b G_B|^2 of each module."""
    count = g.shape[1]
    parts = g[:, :first].sum(1) / count, g[:, first:].sum(1) / count
    vectors = torch.stack([*parts, sum(parts)], dim=1)
    return vectors.double().square().sum(2), (first / count, 1 - first / count)


@pytest.mark.parametrize('first, second', [(2, 2), (1, 2), (3, 4)])
def test_norms_give_products_of_halves(first, second):
    g = torch.randn(3, first + second, 5, dtype=torch.float64)
    g[1, :first] = 0
    half_a, half_b = g[:, :first].mean(1), g[:, first:].mean(1)
    expected = torch.stack(
        [
            torch.stack([a @ b, a @ a, b @ b])
            for a, b in zip(half_a, half_b, strict=True)
        ]
    )
    found = products_of_halves(*squares_of(g, first), eps=1e-16)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    # A module with gradients in the second half only.
    assert found[1, 1] == 0 and variance_from_halves(*found.unbind(1))[1] == 1


@pytest.mark.parametrize('size', [0.0, 1e-7])
def test_half_below_float32_rounding_counts_as_zero(size):
    g = torch.randn(1, 7, 200_000)
    g[:, :3] *= size
    found = products_of_halves(*squares_of(g, 3), eps=torch.finfo(torch.float32).eps)
    assert found[0, 1] == 0
    phi = variance_from_halves(*found.unbind(1))
    assert phi.item() == pytest.approx(1, abs=0.05)


def test_non_finite_products_stay_non_finite(subtests):
    for bad, column in product([float('nan'), float('inf'), float('-inf')], [0, 1, 2]):
        with subtests.test(bad=bad, column=column):
            products = torch.ones(1, 3, dtype=torch.float64)
            products[0, column] = bad
            products = products_of_halves(products, (0.5, 0.5), eps=1e-16)
            phi = variance_from_halves(*products.unbind(1))
            assert not phi.isfinite()


def test_equal_and_opposite_halves():
    g = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert variance_from_halves(g @ g, g @ g, g @ g).item() == pytest.approx(0)
    assert variance_from_halves(-g @ g, g @ g, g @ g).item() == pytest.approx(2)


def test_zero_gradient_counts_as_uncorrelated():
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert variance_from_halves(zero, zero, one) == 1
    assert variance_from_replicas(zero, zero, 4) == 1


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_non_finite_norms_stay_non_finite(bad):
    bad, one = torch.tensor(bad), torch.tensor(1.0)
    assert not variance_from_halves(bad, bad, one).isfinite()
    assert not variance_from_replicas(bad, one, 4).isfinite()
    assert not variance_from_replicas(bad, bad, 4).isfinite()
