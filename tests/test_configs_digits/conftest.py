"""Tiny data set with its backbone, for the configs of configs/digits."""

import pytest

from demo import pretrain_backbone, write_digits


@pytest.fixture(scope='session')
def tiny_digits(tmp_path_factory):
    """Write 16 training and 4 validation scenes and a barely trained backbone."""
    out = tmp_path_factory.mktemp('data') / 'digits'
    write_digits(out, num_train=16, num_val=4, progress=False)
    pretrain_backbone(out, num_patches=64, epochs=1, progress=False)
    return out
