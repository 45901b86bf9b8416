"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from functools import lru_cache

# The tests compare with computations on the CPU, to the last bit where they can. GPUs
# have their own check, gpu_check. MMEngine asks for GPUs when it is imported,
# and torch keeps the answer: this comes first.
os.environ['CUDA_VISIBLE_DEVICES'] = ''

import pytest
import torch
from mmengine.config import config, utils
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer


@pytest.fixture(autouse=True, scope='session')
def remember_lookups_of_configs() -> Iterator[None]:
    """Read the metafiles of a toolbox once, not for each base of a config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, 'load', lru_cache(utils.load))
        patch.setattr(config, 'is_installed', lru_cache(config.is_installed))
        yield


@pytest.fixture(autouse=True)
def reset_global_state() -> Iterator[None]:
    """Clear MMEngine's global scopes and visualizers after each test."""
    yield
    # Each subclass of the visualizer has its own instances.
    kinds = [DefaultScope, Visualizer]
    for kind in kinds:
        kind._instance_dict.clear()
        kinds.extend(kind.__subclasses__())


@pytest.fixture(autouse=True)
def use_one_thread() -> None:
    """Limit torch to one thread: tests are small, and their ranks share the cores."""
    torch.set_num_threads(1)
