"""Norms of large and of many tensors."""

from itertools import product

import pytest
import torch

from agvm_mm.estimators.reductions import norms


@pytest.mark.parametrize('length', [0, 1, 1000, 16_385, 3_000_001])
def test_norm_of_a_large_gradient_keeps_precision(length):
    x, y = 1 + torch.rand(2, length)
    found = norms([x, y, x.double()])
    assert [each.dtype for each in found] == [*[torch.float32] * 2, torch.float64]
    for each, tensor in zip(found, (x, y, x), strict=True):
        expected = tensor.double().norm().item()
        assert each.item() == pytest.approx(expected, rel=5e-7)


def test_half_precision_is_squared_in_float32():
    (found,) = norms([torch.full((1000,), 300.0, dtype=torch.float16)])
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(9e7**0.5)


def check_norms(dtype, length):
    x, found = torch.randn(length, dtype=dtype), set()
    for offset in range(17):
        moved = torch.zeros(length + 17, dtype=dtype)
        moved[offset : offset + length] = x
        others = [torch.randn(5, dtype=dtype)] * offset
        *_, last = norms([*others, moved[offset : offset + length]])
        found.add(last.item())
    assert len(found) == 1


def test_norms_do_not_depend_on_alignment_or_neighbors(subtests):
    for dtype, length in product([torch.float32, torch.float64], [7, 64, 1000, 70_000]):
        with subtests.test(dtype=dtype, length=length):
            check_norms(dtype, length)
