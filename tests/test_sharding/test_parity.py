"""States divided over the ranks against plain DDP, in float64."""

import numpy as np
import pytest
from engines import CASES, UPDATES, train_cases
from ranks import run_on_ranks


@pytest.mark.parametrize('ranks', [2, 3])
@pytest.mark.parametrize('engine', ['zero'])
def test_equals_ddp(engine, ranks):
    results = run_on_ranks(train_cases, ranks, engine)
    for case in CASES:
        (expected, expected_history), (found, history) = results[0][case]
        if case[3]:  # The clipping acts.
            plain = results[0][(*case[:3], None)][1][0]
            assert max(abs(found[n] - plain[n]).max() for n in found) > 1e-4
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, 0, 1e-12, err_msg=str(case))
        assert len(history) == UPDATES
        for (mu, phi, noise), (same_mu, same_phi, same_noise) in zip(
            history, expected_history, strict=True
        ):
            assert mu == pytest.approx(same_mu, rel=0, abs=1e-12), case
            assert phi == pytest.approx(same_phi, rel=0, abs=1e-12), case
            assert noise.keys() == same_noise.keys()
            for name, value in same_noise.items():
                assert noise[name] == pytest.approx(value, rel=1e-10), case
        assert len(set(history[-1][0].values())) == 4, 'multipliers did not move'
        for other in results[1:]:
            parameters, other_history = other[case][1]
            assert other_history == history, case
            for name, value in found.items():
                np.testing.assert_array_equal(parameters[name], value)
