"""Counts of an update; what only a GPU does is simulated."""

import warnings

import pytest
import torch

from gpu_check import counts
from gpu_check.ranks import Ranks

pytestmark = pytest.mark.evidence

WARNING = 'called a synchronizing CUDA operation (Triggered internally)'


@pytest.fixture
def modes(monkeypatch):
    """Pretend to have a GPU; return the debug modes that are set."""
    found = []
    monkeypatch.setattr(counts, 'rank_device', lambda: torch.device('cuda'))
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', found.append)
    return found


def test_synchronizations_are_counted_from_the_warnings_of_torch(modes):
    def update():
        assert modes == ['warn']
        for message in (WARNING, 'something else', WARNING):
            warnings.warn(message, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert counts.count_synchronizations(update) == 2
    assert modes == ['warn', 'default']


def test_cpu_has_neither_synchronizations_nor_a_peak():
    assert counts.count_synchronizations(pytest.fail) is None
    assert counts.device_peak(pytest.fail) is None


def test_operators_of_an_update_are_counted():
    total = torch.ones(3)

    def update():
        for _ in range(4):
            total.mul_(total)

    assert counts.count_calls(update) == dict(operators=4, kernels=None)


def test_kernels_are_the_launches_of_cuda():
    names = [
        'aten::add',
        'cudaLaunchKernel',
        'cudaLaunchKernelExC',
        'cuLaunchKernelEx',
        'cudaMemcpyAsync',
        'cudaStreamSynchronize',
        'void at::native::vectorized_elementwise_kernel<4>',
        'aten::mul',
    ]
    assert counts.count_names(names) == dict(operators=2, kernels=3)


def cells(counted):
    """Return results of one rank with the given counts."""
    names = [('plain', False), ('halves', False), ('halves', True)]
    names += [('replicas', False), ('replicas', True)]
    return dict(zip(names, counted, strict=True))


@pytest.mark.parametrize(
    'counted, problems',
    [
        ((0, 0, 1, 0, 1), 0),
        ((5, 5, 6, 5, 5), 0),
        ((0, 1, 1, 0, 1), 1),
        ((0, 0, 2, 0, 1), 1),
        ((None,) * 5, 0),
    ],
)
def test_only_a_measured_update_may_add_a_synchronization(counted, problems):
    right, own = cells((0, 0, 1, 0, 1)), cells(counted)
    for by_rank in ([own, right], [right, own]):
        assert len(counts.judge_waits(by_rank)) == problems


def test_description_names_each_cell():
    assert counts.describe_waits(cells((0, 0, 1, 0, 2))) == (
        'plain 0, halves 0, halves measured 1, replicas 0, replicas measured 2'
    )


def counted_rank():
    """Measure on this rank as if on a GPU; return the debug modes, too."""
    asked = []
    torch.cuda.set_sync_debug_mode = asked.append
    counts.rank_device = lambda: torch.device('cuda')
    return counts.measure_waits(), asked


@pytest.mark.parametrize('ranks', [1, 2])
def test_each_cell_is_measured_on_ranks(ranks):
    for found, asked in Ranks(ranks, 0).run(counted_rank):
        assert found == cells((0,) * 5)
        assert asked == ['warn', 'default'] * len(found)
