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


def drawn(axes):
    """Coordinates of the labelled lines of a panel."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if not line.get_label().startswith('_')
    }


def test_figure_shows_every_module():
    figure = plot_variance.plot_variance(RECORDS, title='a title', window=1)
    above, below = figure.axes
    for axes, key in ((above, plot_variance.PHI_KEY), (below, plot_variance.MU_KEY)):
        assert drawn(axes) == plot_variance.module_curves(RECORDS, key)
        assert axes.get_ylabel()
    assert below.get_xlabel() == 'optimizer update'
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ['backbone', 'head', 'learning-rate step']
    assert figure.get_suptitle() == 'a title'


def test_running_mean():
    assert plot_variance.running_mean([1, 2, 6, 4, 3], 3) == [1.5, 3, 4, 13 / 3, 3.5]
    assert plot_variance.running_mean([1, 2, 6], 1) == [1, 2, 6]
    assert plot_variance.running_mean([], 5) == []
    # The jump at a learning-rate step stays one.
    means = plot_variance.smooth(range(6), [0, 0, 0, 9, 9, 9], 5, breaks=[2])
    assert means == [0, 0, 0, 9, 9, 9]


def test_smoothed_over_raw():
    values = [0.1, 0.4, 0.1, 0.4, 0.1, 0.4]
    records = [
        {'step': step, 'lr': 0.1, 'agvm/phi/head': value, 'agvm/mu/head': value}
        for step, value in enumerate(values)
    ]
    above, below = plot_variance.plot_variance(records, window=3).axes
    raw, means = above.lines
    assert list(raw.get_ydata()) == values
    assert list(means.get_ydata()) == plot_variance.running_mean(values, 3)
    assert means.get_linewidth() > raw.get_linewidth()
    assert raw.get_color() == means.get_color()
    # mu is a moving average as it is.
    assert drawn(below)['head'][1] == values


def test_a_measurement_that_is_logged_again_counts_once():
    records = [
        {'step': step, 'agvm/phi/head': phi, 'agvm/mu/head': 1.0}
        for step, phi in enumerate([0.5, 0.5, 0.5, 0.2, 0.2, 0.5])
    ]
    measured = plot_variance.drop_repeats([{'step': 9}, *records])
    assert [record['step'] for record in measured] == [0, 3, 5]


def test_runs_side_by_side():
    only_head = [
        {key: value for key, value in record.items() if 'backbone' not in key}
        for record in RECORDS
    ]
    figure = plot_variance.plot_runs({'first': RECORDS, 'second': only_head})
    first, second, _, below = figure.axes
    assert [panel.get_title() for panel in figure.axes] == ['first', 'second', '', '']
    assert first.get_ylim() == second.get_ylim()
    assert list(drawn(first)) == ['backbone', 'head']
    assert list(drawn(second)) == list(drawn(below)) == ['head']
    # A module looks the same in both; no two modules look alike, even in grey.
    looks = {
        (line.get_label(), line.get_color(), line.get_linestyle(), line.get_marker())
        for panel in figure.axes
        for line in panel.lines
        if not line.get_label().startswith('_')
    }
    assert len(looks) == 2
    assert len({look[1] for look in looks}) == len({look[2:] for look in looks}) == 2
    for panel in figure.axes:  # the step from 0.1 to 0.01
        assert [2, 2] in [list(line.get_xdata()) for line in panel.lines]


def write_log(folder, age, steps):
    log = folder / str(age) / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    rows = [{'step': step, 'lr': 0.1, 'age': age} for step in steps]
    # A validation counts epochs, not updates.
    log.write_text('\n'.join(map(json.dumps, [*rows, {'step': 1, 'mAP': 0.5}])))
    os.utime(log, (age, age))


def test_a_resumed_run_is_joined(tmp_path):
    write_log(tmp_path, 1, range(2, 11, 2))
    write_log(tmp_path, 2, [8, 10, 12])  # went on from update 6
    write_log(tmp_path, 3, [])  # killed before it trained
    records = plot_variance.read_run(tmp_path)
    assert [(record['step'], record['age']) for record in records] == [
        (2, 1),
        (4, 1),
        (6, 1),
        (8, 2),
        (10, 2),
        (12, 2),
    ]
    write_log(tmp_path, 4, [2, 4])  # begun anew
    assert [r['age'] for r in plot_variance.read_run(tmp_path)] == [4, 4]
    log = tmp_path / '2/vis_data/scalars.json'
    assert [r['age'] for r in plot_variance.read_run(log)] == [2, 2, 2]


def test_names_of_runs():
    assert plot_variance.name_runs(['work_dirs/a']) == ['a']
    assert plot_variance.name_runs(['work_dirs/a', 'work_dirs/b']) == ['a', 'b']
    logs = ['a/1/vis_data/scalars.json', 'b/1/vis_data/scalars.json']
    assert plot_variance.name_runs(logs) == ['a', 'b']


def test_a_log_without_variances_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='VarianceSyncHook'):
        plot_variance.plot_variance(RECORDS[:1])
    with pytest.raises(FileNotFoundError, match='scalars.json'):
        plot_variance.find_log(tmp_path)


def test_command_line(run, tmp_path):
    out = tmp_path / 'new' / 'variance.png'
    svg = tmp_path / 'new' / 'variance.svg'
    script = ROOT / 'tools/analysis/plot_variance.py'
    subprocess.run([sys.executable, script, run, '--out', out, svg], check=True)
    assert out.read_bytes().startswith(b'\x89PNG')
    assert '<svg' in svg.read_text()


def test_a_kind_of_picture_that_there_is_not(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        plot_variance.main([str(run), '--out', str(tmp_path / 'variance.foo')])
    assert "'foo' is not supported" in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['nowhere'], 'nowhere has no vis_data/scalars.json'),
        (['a', 'a'], 'runs with the same name: a, a; give --names'),
        (['a', 'b', '--names', 'x'], '2 runs, but 1 --names'),
        (['a', '--window', '0'], '--window must be at least 1, got 0'),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, capsys):
    with pytest.raises(SystemExit):
        plot_variance.main(arguments)
    assert message in capsys.readouterr().err
