"""Logs are read right by the tools that come with the toolboxes."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import mmdet
import mmseg
import pytest
from runners import make_runner

STEPS = list(range(1, 9))


def tool(package):
    """Load ``analyze_logs.py`` as it is in the wheel."""
    path = Path(package.__file__).parent / '.mim/tools/analysis_tools/analyze_logs.py'
    spec = importlib.util.spec_from_file_location('analyze_logs', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def log(tmp_path, monkeypatch):
    # Only draws.
    monkeypatch.setitem(sys.modules, 'seaborn', ModuleType('seaborn'))
    make_runner(
        tmp_path,
        dict(
            type='AGVMOptimWrapper',
            optimizer=dict(type='SGD', lr=0.05),
            clip_grad=dict(max_norm=1.0),
            clip_window=(0, 2),
        ),
        images=64,
        batch_size=2,
        train_cfg=dict(type='LargeBatchTrainLoop', max_epochs=1, total_batch_size=8),
        hooks=[dict(type='VarianceSyncHook', interval=2)],
    ).train()
    (path,) = tmp_path.glob('*/vis_data/scalars.json')
    return path


def test_curves_of_mmdetection_are_whole(log):
    (epochs,) = tool(mmdet).load_json_logs([str(log)])
    values = epochs[1]
    assert values['step'] == STEPS
    assert len(values['loss']) == len(values['lr']) == len(STEPS)
    for module in ('backbone', 'neck', 'mask_head'):
        assert len(values[f'phi_{module}']) == len(values[f'mu_{module}']) == 4


def test_curves_of_mmsegmentation_are_whole(log):
    (steps,) = tool(mmseg).load_json_logs([str(log)])
    assert sorted(steps) == STEPS
    assert all(len(values['loss']) == 1 for values in steps.values())
    assert [step for step in STEPS if 'agvm/phi_neck' in steps[step]] == [1, 3, 5, 7]


def test_every_line_is_json_and_nothing_is_repeated(log):
    def refuse(name):
        raise ValueError(f'{name} is not JSON')

    rows = [
        json.loads(line, parse_constant=refuse) for line in log.read_text().splitlines()
    ]
    assert [row['step'] for row in rows if 'grad_norm' in row] == [1, 2, 3]
    assert not any('micro_batches' in row for row in rows)
