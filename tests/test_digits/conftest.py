"""A tiny data set, written once for all tests of this folder."""

import pytest

from agvm_mm.digits import write_digits


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """Folder with 12 train and 6 validation scenes of seed 0."""
    out = tmp_path_factory.mktemp('data') / 'digits'
    assert write_digits(out, num_train=12, num_val=6, progress=False)
    return out
