"""Golden case and parity: differences are found, on CPU ranks."""

import copy
import math

import pytest

from agvm_mm.sharding import model as sharding
from gpu_check import golden, parity
from gpu_check.command import compare, compare_engines, compare_golden, compare_parity
from gpu_check.ranks import Ranks

pytestmark = pytest.mark.evidence

CPU_PAIR = Ranks(2, 0)


def test_golden_case_passes_on_four_ranks():
    outcome = compare_golden(Ranks(golden.RANKS, 0))
    assert not outcome.problems
    assert set(outcome.data) == {'Phi', 'mu'}


@pytest.mark.parametrize('kind, name', [(0, 'Phi'), (1, 'mu')])
@pytest.mark.parametrize('rank', [0, 1])
def test_wrong_value_on_any_rank_differs_from_golden_case(kind, name, rank):
    right = {
        estimator: (dict(phi), dict(backbone=1.0, head=golden.MULTIPLIER[estimator]))
        for estimator, phi in golden.VARIANCES.items()
    }
    by_rank = [right, copy.deepcopy(right)]
    assert not compare(golden.golden_differences(by_rank), golden.TOLERANCES).problems
    by_rank[rank] = copy.deepcopy(right)
    by_rank[rank]['halves'][kind]['head'] += 0.01
    found = golden.golden_differences(by_rank)
    assert found[name] == pytest.approx(0.01)
    (problem,) = compare(found, golden.TOLERANCES).problems
    assert problem.startswith(f'{name}: 1.0e-02 is more than')


def test_difference_that_is_not_a_number_is_a_problem():
    assert math.isnan(golden.largest([0.0, math.nan]))
    assert compare(dict(Phi=math.nan), dict(Phi=1e-9)).problems


def test_parity_passes_on_two_ranks():
    outcome = compare_parity(CPU_PAIR)
    assert not outcome.problems
    assert set(outcome.data) == {'Phi', 'mu', 'parameters', 'ranks'}


def reference_cases(ranks):
    """Return what each rank would return if it were equal to the reference."""
    trained = {
        case: parity.train_reference(case[0], case[1], ranks, case[2])
        for case in parity.CASES
    }
    return [copy.deepcopy(trained) for _ in range(ranks)]


@pytest.mark.parametrize('spoiled', ['mu', 'Phi', 'parameters'])
def test_parity_finds_what_differs_from_the_reference_or_between_ranks(spoiled):
    for rank in range(2):
        by_rank = reference_cases(2)
        parameters, history = by_rank[rank]['AdamW', 'replicas', 2]
        if spoiled == 'parameters':
            parameters['neck.weight'][3, 4] += 1e-3
        else:
            history[7][spoiled == 'Phi']['bbox_head'] += 1e-3
        found = parity.parity_differences(by_rank)
        changed = {name for name, value in found.items() if value > 1e-4}
        # The first rank is compared with the reference, the others with the first.
        assert changed == ({spoiled, 'ranks'} if rank == 0 else {'ranks'})


def test_one_gpu_skips_the_engines():
    outcome = compare_engines(Ranks(2, 1))
    assert outcome == ('skipped: it needs two or more GPUs', [], None)


def test_old_torch_skips_fsdp2_only(monkeypatch):
    monkeypatch.setattr(sharding, 'NEEDED', ('set_something',))
    asked = []

    def run(ranks, function, engines):
        asked.append(engines)
        trained = parity.train_reference('SGD', 'halves', 2, 1)
        case = ('SGD', 'halves', 1)
        return [{(engine, case): trained for engine in ('ddp', *engines)}] * 2

    monkeypatch.setattr(Ranks, 'run', run)
    outcome = compare_engines(CPU_PAIR)
    assert asked == [['zero']]
    assert 'FSDP2 skipped: torch' in outcome.found and not outcome.problems


@pytest.mark.parametrize('spoiled', ['mu', 'Phi', 'parameters'])
def test_engines_that_differ_from_ddp_or_between_ranks_are_found(spoiled):
    case = ('AdamW', 'replicas', 1)
    trained = parity.train_reference(*case[:2], 2, 1)
    for rank in range(2):
        by_rank = [
            {(e, case): copy.deepcopy(trained) for e in ('ddp', 'fsdp')}
            for _ in range(2)
        ]
        parameters, history = by_rank[rank]['fsdp', case]
        if spoiled == 'parameters':
            parameters['neck.weight'][3, 4] += 1e-3
        else:
            history[7][spoiled == 'Phi']['bbox_head'] += 1e-3
        found = parity.engine_differences(by_rank)
        changed = {name for name, value in found.items() if value > 1e-4}
        expected = {f'fsdp {spoiled}', 'ranks'} if rank == 0 else {'ranks'}
        assert changed == expected
