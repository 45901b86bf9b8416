"""Fixtures shared by all tests."""

from collections.abc import Iterator

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer


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
