"""variance.py against hand-worked numbers and sampling."""

import golden
import numpy as np
import pytest
import torch

from agvm_mm.variance import (
    adam_direction,
    adam_second_moment,
    inner_product,
    inner_products,
    products_of_halves,
    split_into_halves,
    squared_norm,
    variance_from_halves,
    variance_from_replicas,
)


@pytest.mark.parametrize('module', golden.GRADIENTS)
def test_halves_on_the_hand_checked_case(module):
    g = torch.tensor(golden.GRADIENTS[module], dtype=torch.float64)
    first, second = g[:2].mean(0), g[2:].mean(0)
    phi = variance_from_halves(
        inner_product(first, second), squared_norm(first), squared_norm(second)
    )
    assert phi.item() == pytest.approx(golden.VARIANCES['halves'][module], abs=1e-10)


@pytest.mark.parametrize('module', golden.GRADIENTS)
def test_replicas_on_the_hand_checked_case(module):
    local = torch.tensor(golden.LOCAL_SQ[module])
    mean = torch.tensor(golden.MEAN_SQ[module])
    phi = variance_from_replicas(local.double(), mean.double(), 4)
    assert phi.item() == pytest.approx(golden.VARIANCES['replicas'][module], abs=1e-10)


def test_replicas_of_two_is_the_symmetric_cosine():
    g1, g2 = torch.randn(2, 7, dtype=torch.float64)
    local = (g1 @ g1 + g2 @ g2) / 2
    mean = ((g1 + g2) / 2).square().sum()
    expected = 1 - 2 * (g1 @ g2) / (g1 @ g1 + g2 @ g2)
    assert variance_from_replicas(local, mean, 2).item() == pytest.approx(
        expected.item(), abs=1e-14
    )


def test_both_estimates_agree_in_the_mean_and_replicas_is_less_noisy():
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


@pytest.mark.parametrize('first, second', [(2, 2), (1, 2), (3, 4)])
def test_split_into_halves_undoes_the_two_reductions(first, second):
    g = torch.randn(first + second, 5, dtype=torch.float64)
    half_a, half_b = g[:first].mean(0), g[first:].mean(0)
    a, b = split_into_halves(g.mean(0), half_a - half_b, first, second)
    torch.testing.assert_close(a, half_a, rtol=0, atol=1e-14)
    torch.testing.assert_close(b, half_b, rtol=0, atol=1e-14)


@pytest.mark.parametrize('first, second', [(2, 2), (1, 2), (3, 4)])
def test_products_of_the_reductions_give_those_of_the_halves(first, second):
    g = torch.randn(3, first + second, 5, dtype=torch.float64)
    g[1, :first] = 0
    half_a, half_b = g[:, :first].mean(1), g[:, first:].mean(1)
    products = torch.stack(
        [
            inner_products(mean, difference)
            for mean, difference in zip(g.mean(1), half_a - half_b, strict=True)
        ]
    )
    expected = torch.stack(
        [inner_products(a, b) for a, b in zip(half_a, half_b, strict=True)]
    )
    found = products_of_halves(products, first, second)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    # A module that only the second half has seen.
    assert found[1, 1] == 0 and variance_from_halves(*found.unbind(1))[1] == 1


@pytest.mark.parametrize('size', [0.0, 1e-3])
def test_a_half_that_float32_cannot_tell_from_nothing_is_not_noise(size):
    g = torch.randn(7, 200_000)
    g[:3] *= size * 1e-2
    a, b = g[:3].mean(0), g[3:].mean(0)
    products = inner_products(g.mean(0), a - b)[None]
    phi = variance_from_halves(*products_of_halves(products, 3, 4).unbind(1))
    assert phi.item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), float('-inf')])
@pytest.mark.parametrize('column', [0, 1, 2])
def test_products_that_are_not_finite_stay_visible(bad, column):
    products = torch.ones(1, 3)
    products[0, column] = bad
    phi = variance_from_halves(*products_of_halves(products, 2, 2).unbind(1))
    assert not phi.isfinite()


def test_sums_over_a_large_gradient_do_not_lose_precision():
    x, y = 1 + torch.rand(2, 3_000_001)
    wide = x.double(), y.double()
    expected = torch.stack([wide[0] @ wide[1], wide[0] @ wide[0], wide[1] @ wide[1]])
    found = inner_products(x, y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(inner_product(x, y), found[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(squared_norm(x), found[1], rtol=1e-6, atol=0)


def test_extremes_of_halves():
    g = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert variance_from_halves(g @ g, g @ g, g @ g).item() == pytest.approx(0)
    assert variance_from_halves(-g @ g, g @ g, g @ g).item() == pytest.approx(2)


def test_a_zero_gradient_counts_as_uncorrelated_in_both():
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    assert variance_from_halves(zero, zero, one) == 1
    assert variance_from_replicas(zero, zero, 4) == 1


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_what_is_not_finite_stays_visible(bad):
    bad, one = torch.tensor(bad), torch.tensor(1.0)
    assert not variance_from_halves(bad, bad, one).isfinite()
    assert not variance_from_replicas(bad, one, 4).isfinite()
    assert not variance_from_replicas(bad, bad, 4).isfinite()


def test_half_precision_is_squared_in_float32():
    x = torch.full((1000,), 300.0, dtype=torch.float16)
    assert squared_norm(x).dtype == torch.float32
    assert squared_norm(x).item() == pytest.approx(9e7)


def test_adam_direction_is_the_step_of_torch_at_the_first_update():
    # Without first moment: betas (0, beta2); bias correction is divided out.
    g = torch.randn(6, dtype=torch.float64)
    p = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    p.grad = g.clone()
    beta2, eps = 0.9, 1e-3
    optimizer = torch.optim.AdamW(
        [p], lr=1, betas=(0.0, beta2), eps=eps, weight_decay=0
    )
    optimizer.step()
    v = adam_second_moment(g, torch.zeros_like(g), beta2)
    corrected = v / (1 - beta2)
    torch.testing.assert_close(adam_direction(g, corrected, eps), -p.detach())
    torch.testing.assert_close(v, optimizer.state[p]['exp_avg_sq'])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('length', [7, 64, 1000, 70_000])
def test_products_do_not_depend_on_the_place_in_memory(dtype, length):
    x, y = torch.randn(2, length, dtype=dtype)
    found = set()
    for offset in range(17):
        moved = torch.zeros(2, length + 17, dtype=dtype)
        moved[:, offset : offset + length] = torch.stack([x, y])
        a, b = moved[:, offset : offset + length]
        found.add((inner_product(a, b).item(), squared_norm(a).item()))
    assert len(found) == 1
