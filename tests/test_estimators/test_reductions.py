"""Sums over large tensors."""

import pytest
import torch

from agvm_mm.estimators.reductions import inner_products, squared_norm


def test_sums_over_large_gradient_keep_precision():
    x, y = 1 + torch.rand(2, 3_000_001)
    wide = x.double(), y.double()
    expected = torch.stack([wide[0] @ wide[1], wide[0] @ wide[0], wide[1] @ wide[1]])
    found = inner_products(x, y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(squared_norm(x), found[1], rtol=1e-6, atol=0)


def test_half_precision_is_squared_in_float32():
    x = torch.full((1000,), 300.0, dtype=torch.float16)
    assert squared_norm(x).dtype == torch.float32
    assert squared_norm(x).item() == pytest.approx(9e7)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('length', [7, 64, 1000, 70_000])
def test_products_do_not_depend_on_alignment(dtype, length):
    x, y = torch.randn(2, length, dtype=dtype)
    found = set()
    for offset in range(17):
        moved = torch.zeros(2, length + 17, dtype=dtype)
        moved[:, offset : offset + length] = torch.stack([x, y])
        a, b = moved[:, offset : offset + length]
        found.add((*inner_products(a, b).tolist(), squared_norm(a).item()))
    assert len(found) == 1
