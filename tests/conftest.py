"""Set-up that all tests share."""

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer


@pytest.fixture(autouse=True)
def no_traces():
    """MMEngine keeps the last scope and visualizer for whoever comes next."""
    yield
    # Each kind of visualizer keeps its own.
    kinds = [DefaultScope, Visualizer]
    for kind in kinds:
        kind._instance_dict.clear()
        kinds.extend(kind.__subclasses__())


@pytest.fixture(autouse=True)
def one_thread():
    """Tests are small, and two cores are shared with the ranks they start."""
    torch.set_num_threads(1)
