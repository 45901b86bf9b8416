"""Packages of forks."""

import pytest
from mmengine.config import utils

from agvm_mm import compat


@pytest.mark.parametrize(
    'installed, package',
    [
        ({'onedl-mmengine', 'onedl-mmsegmentation'}, 'onedl-mmsegmentation'),
        ({'onedl-mmengine', 'mmsegmentation'}, 'mmsegmentation'),
        ({'onedl-mmengine'}, 'mmsegmentation'),
        ({'mmengine', 'onedl-mmsegmentation'}, 'mmsegmentation'),
    ],
)
def test_configs_are_in_the_package_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], package: str
):
    packages = dict(mmdet='mmdet', mmseg='mmsegmentation')
    monkeypatch.setattr(utils, 'MODULE2PACKAGE', packages)
    monkeypatch.setattr(compat, 'is_installed', installed.__contains__)
    compat.find_configs_of_forks()
    assert packages == dict(mmdet='mmdet', mmseg=package)


def test_installed_packages_are_known():
    assert compat.is_installed('mmengine') or compat.is_installed('onedl-mmengine')
    assert not compat.is_installed('onedl-nothing')
