"""A tiny data set that is written once for all tests in this folder."""

import pytest

from demo import write_digits


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """Return a folder with 12 train and 6 validation scenes of seed 0."""
    out = tmp_path_factory.mktemp('data') / 'digits'
    assert write_digits(out, num_train=12, num_val=6, progress=False)
    return out
