"""States divided over the ranks against plain DDP, in float64."""

import numpy as np
import pytest
import torch.distributed as dist
from engines import (
    CASES,
    DIVIDED,
    ENGINES,
    SETTINGS,
    UPDATES,
    build,
    needs_fsdp,
    train_cases,
)
from ranks import run_on_ranks

from gpu_check import golden


@needs_fsdp
@pytest.mark.parametrize('ranks', [2, 3, pytest.param(4, marks=pytest.mark.evidence)])
def test_equals_ddp(ranks):
    results = run_on_ranks(train_cases, ranks)
    for case in CASES:
        expected, expected_history = results[0][('ddp', *case)]
        assert len(expected_history) == UPDATES
        multipliers = expected_history[-1][0]
        assert len(set(multipliers.values())) == 4, 'multipliers did not move'
        if case[3]:  # The clipping acts.
            plain, _ = results[0][('ddp', *case[:3], None)]
            assert max(abs(expected[n] - plain[n]).max() for n in plain) > 1e-4
        for key in [(engine, *case) for engine in ENGINES[1:]]:
            found, history = results[0][key]
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, 0, 1e-12, err_msg=key)
            for (mu, phi, noise), (same_mu, same_phi, same_noise) in zip(
                history, expected_history, strict=True
            ):
                assert mu == pytest.approx(same_mu, rel=0, abs=1e-12), key
                assert phi == pytest.approx(same_phi, rel=0, abs=1e-12), key
                assert noise.keys() == same_noise.keys()
                for name, value in same_noise.items():
                    assert noise[name] == pytest.approx(value, rel=1e-10), key
            for other in results[1:]:
                parameters, other_history = other[key]
                assert other_history == history, key
                for name, value in found.items():
                    np.testing.assert_array_equal(parameters[name], value)


def measure_golden(engine):
    """Measure the hand-computed case on this rank of four."""
    results = {}
    for estimator in golden.VARIANCES:
        _, trained, wrapper = build(
            engine, SETTINGS['SGD'], estimator, golden.GoldenModel(), units=[]
        )
        with wrapper.optim_context(trained):
            loss = trained(dist.get_rank())
        wrapper.update_params(loss)
        results[estimator] = (wrapper.agvm.variances, wrapper.agvm.multipliers)
    return results


@pytest.mark.parametrize('engine', DIVIDED)
def test_golden_case(engine):
    by_rank = run_on_ranks(measure_golden, golden.RANKS, engine)
    differences = golden.golden_differences(by_rank)
    for name, tolerance in golden.TOLERANCES.items():
        assert differences[name] < tolerance
