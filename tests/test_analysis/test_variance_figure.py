"""Figure of variances: what it shows of the records of a run."""

import pytest
from matplotlib.axes import Axes

from agvm_mm.analysis.figures import plot_runs, plot_variance
from agvm_mm.analysis.figures.variance import running_mean, smooth
from agvm_mm.analysis.logs import MU_KEY, PHI_KEY, module_curves

RECORDS = [
    {'step': 1, 'lr': 0.1, 'loss': 3.0},
    {'step': 2, 'lr': 0.1, 'agvm/phi/backbone': 0.5, 'agvm/mu/backbone': 1.0}
    | {'agvm/phi/head': 0.1, 'agvm/mu/head': 1.2},
    {'step': 2, 'coco/bbox_mAP': 0.4},
    {'step': 3, 'lr': 0.01, 'agvm/phi/backbone': 0.6, 'agvm/mu/backbone': 1.0}
    | {'agvm/phi/head': 0.2, 'agvm/mu/head': 1.3},
]


def drawn(axes: Axes) -> dict[str, tuple[list, list]]:
    """Return the coordinates of the labeled lines of a panel."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if not line.get_label().startswith('_')
    }


def test_every_module_is_drawn():
    figure = plot_variance(RECORDS, title='a title', window=1)
    above, below = figure.axes
    for axes, key in ((above, PHI_KEY), (below, MU_KEY)):
        assert drawn(axes) == module_curves(RECORDS, key)
        assert axes.get_ylabel()
    assert below.get_xlabel() == 'optimizer update'
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ['backbone', 'head', 'learning-rate step']
    assert figure.get_suptitle() == 'a title'


def test_running_mean():
    assert running_mean([1, 2, 6, 4, 3], 3) == [1.5, 3, 4, 13 / 3, 3.5]
    assert running_mean([1, 2, 6], 1) == [1, 2, 6]
    assert running_mean([], 5) == []
    # The jump at a learning-rate step is kept.
    means = smooth(range(6), [0, 0, 0, 9, 9, 9], 5, breaks=[2])
    assert means == [0, 0, 0, 9, 9, 9]


def test_running_mean_is_drawn_over_measurements():
    values = [0.1, 0.4, 0.1, 0.4, 0.1, 0.4]
    records = [
        {'step': step, 'lr': 0.1, 'agvm/phi/head': value, 'agvm/mu/head': value}
        for step, value in enumerate(values)
    ]
    above, below = plot_variance(records, window=3).axes
    raw, means = above.lines
    assert list(raw.get_ydata()) == values
    assert list(means.get_ydata()) == running_mean(values, 3)
    assert means.get_linewidth() > raw.get_linewidth()
    assert raw.get_color() == means.get_color()
    # mu is a moving average already.
    assert drawn(below)['head'][1] == values


def test_runs_are_drawn_side_by_side():
    only_head = [
        {key: value for key, value in record.items() if 'backbone' not in key}
        for record in RECORDS
    ]
    figure = plot_runs({'first': RECORDS, 'second': only_head})
    first, second, _, below = figure.axes
    assert [panel.get_title() for panel in figure.axes] == ['first', 'second', '', '']
    assert first.get_ylim() == second.get_ylim()
    assert list(drawn(first)) == ['backbone', 'head']
    assert list(drawn(second)) == list(drawn(below)) == ['head']
    # A module looks the same in both; two modules also differ in gray.
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


def test_log_without_variances_is_an_error():
    with pytest.raises(ValueError, match='VarianceSyncHook'):
        plot_variance(RECORDS[:1])
