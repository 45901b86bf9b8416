"""The curves: what is read from a log, and that the figure shows it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
matplotlib.use('agg')

from analysis import plot_variance  # noqa: E402

RECORDS = [
    {'step': 1, 'lr': 0.1, 'loss': 3.0},
    {'step': 2, 'lr': 0.1, 'agvm/phi/backbone': 0.5, 'agvm/mu/backbone': 1.0}
    | {'agvm/phi/head': 0.1, 'agvm/mu/head': 1.2},
    {'step': 2, 'coco/bbox_mAP': 0.4},
    {'step': 3, 'lr': 0.01, 'agvm/phi/backbone': 0.6, 'agvm/mu/backbone': 1.0}
    | {'agvm/phi/head': 0.2, 'agvm/mu/head': 1.3},
]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / 'run' / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    log = folder / 'scalars.json'
    log.write_text('\n'.join(json.dumps(record) for record in RECORDS) + '\n')
    return tmp_path / 'run'


def test_curves(run):
    records = plot_variance.read_scalars(plot_variance.find_log(run))
    assert records == RECORDS
    assert plot_variance.module_curves(records, plot_variance.PHI_KEY) == {
        'backbone': ([2, 3], [0.5, 0.6]),
        'head': ([2, 3], [0.1, 0.2]),
    }
    assert plot_variance.lr_drops(records) == [2]


def test_the_latest_run_counts(run):
    other = run / '20260102_000000' / 'vis_data' / 'scalars.json'
    other.parent.mkdir(parents=True)
    other.write_text('')
    os.utime(other, (0, 0))
    assert plot_variance.find_log(run).parts[-3] == '20260101_000000'
    os.utime(other)
    assert plot_variance.find_log(run) == other
    assert plot_variance.find_log(other) == other


def test_figure_shows_every_module():
    figure = plot_variance.plot_variance(RECORDS, title='a title')
    above, below = figure.axes
    for axes, key in ((above, plot_variance.PHI_KEY), (below, plot_variance.MU_KEY)):
        drawn = {
            line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
            for line in axes.lines
            if not line.get_label().startswith('_')
        }
        assert drawn == plot_variance.module_curves(RECORDS, key)
        assert axes.get_ylabel()
    assert below.get_xlabel() == 'optimizer update'
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ['backbone', 'head', 'learning-rate step']
    assert figure.get_suptitle() == 'a title'


def test_a_log_without_variances_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='VarianceSyncHook'):
        plot_variance.plot_variance(RECORDS[:1])
    with pytest.raises(FileNotFoundError, match='scalars.json'):
        plot_variance.find_log(tmp_path)


def test_command_line(run, tmp_path):
    out = tmp_path / 'new' / 'variance.png'
    script = ROOT / 'tools/analysis/plot_variance.py'
    subprocess.run([sys.executable, script, run, '--out', out], check=True)
    assert out.read_bytes().startswith(b'\x89PNG')
