"""Figure of variances: what it shows of the records of a run."""

import math

import pytest
from matplotlib.axes import Axes

from agvm_mm.report.figures import plot_run
from agvm_mm.report.figures.variance import marked_points, smooth
from agvm_mm.report.logs import MU_KEY, PHI_KEY, Record, module_curves

RECORDS = [
    {'step': 1, 'lr': 0.1, 'loss': 3.0},
    {'step': 2, 'lr': 0.1, 'agvm/phi_backbone': 0.5, 'agvm/mu_backbone': 1.0}
    | {'agvm/phi_head': 0.1, 'agvm/mu_head': 1.2},
    {'step': 2, 'coco/bbox_mAP': 0.4},
    {'step': 3, 'lr': 0.01, 'agvm/phi_backbone': 0.6, 'agvm/mu_backbone': 1.0}
    | {'agvm/phi_head': 0.2, 'agvm/mu_head': 1.3},
]
NAN = math.nan
LINES = ('measurement', 'running mean')


def noisy_records(*, batch: int | None = 256, mu: bool = True) -> list[Record]:
    """Return records with a noise scale of one module and of the whole network.

    The module's is resolved in the second and last measurement only.
    """
    heads, wholes = [NAN, 800.0, NAN, NAN, 50.0], [90.0, 70.0, NAN, 60.0, 55.0]
    return [
        {'step': 10 * i, 'agvm/phi_head': 0.1 * i}
        | ({'agvm/mu_head': 1.0} if mu else {})
        | {'agvm/noise_scale_head': head, 'agvm/noise_scale_all': whole}
        | ({'batch_size': batch} if batch else {})
        for i, (head, whole) in enumerate(zip(heads, wholes, strict=True))
    ]


def drawn(axes: Axes) -> dict[str, tuple[list, list]]:
    """Return the coordinates of the labeled lines of a panel."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if not line.get_label().startswith('_')
    }


def test_every_module_is_drawn():
    figure = plot_run(RECORDS, title='a title')
    above, below, noise = figure.axes
    for axes, key in ((above, PHI_KEY), (below, MU_KEY)):
        expected = module_curves(RECORDS, key)
        assert drawn(axes).keys() == expected.keys()
        for module, (updates, values) in drawn(axes).items():
            assert updates == expected[module][0]
            if key == MU_KEY:
                assert values == pytest.approx(expected[module][1])
        assert axes.get_ylabel()
        # The step from 0.1 to 0.01.
        assert [2, 2] in [list(line.get_xdata()) for line in axes.lines]
    # Modules differ in color and also in gray.
    looks = [
        (line.get_color(), (line.get_linestyle(), line.get_marker()))
        for line in below.lines
        if line.get_label() in ('backbone', 'head')
    ]
    assert all(len(set(look)) == 2 for look in zip(*looks, strict=True))
    assert noise.get_xlabel() == 'iteration'  # Of a loop of MMEngine.
    assert [text.get_text() for text in noise.texts] == ['not resolved']
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [
        *('backbone', 'head', 'whole network'),
        *LINES,
        'learning-rate step',
    ]
    assert figure.get_suptitle() == 'a title'


def test_running_mean():
    assert smooth([1, 2, 6, 4, 3], 3) == [1.5, 3, 4, 13 / 3, 3.5]
    assert smooth([1, 2, 6], 1) == [1, 2, 6]
    assert smooth([], 5) == []


def test_running_mean_is_drawn_over_measurements():
    values = [0.1, 0.4] * 60
    records = [
        {'step': step, 'lr': 0.1, 'agvm/phi_head': value, 'agvm/mu_head': value}
        for step, value in enumerate(values)
    ]
    above, below, _ = plot_run(records).axes
    raw, means = above.lines
    assert list(raw.get_ydata()) == values
    assert list(means.get_ydata()) == smooth(values, 6)
    assert means.get_linewidth() > raw.get_linewidth()
    assert raw.get_color() == means.get_color()
    # mu is a moving average already.
    assert drawn(below)['head'][1] == values


def test_noise_scales_are_drawn_with_the_batch_as_a_line():
    figure = plot_run(noisy_records())
    _, mu, panel = figure.axes
    assert list(drawn(mu)) == ['head']
    assert panel.get_yscale() == 'log' and panel.get_ylabel() == 'noise scale in images'
    assert panel.get_xlabel() == 'optimizer update' and not mu.get_xlabel()
    curves = drawn(panel)
    assert list(curves) == ['head', 'all']
    updates, values = curves['head']
    assert updates == [0, 10, 20, 30, 40]
    # A line has gaps at NaN.
    assert values == pytest.approx([NAN, 800, NAN, NAN, 50], nan_ok=True)
    (batch,) = [line for line in panel.lines if line.get_label().startswith('_')]
    assert set(batch.get_ydata()) == {256}
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ['head', 'whole network', 'batch of 256 images', *LINES]


def test_resolved_point_between_gaps_has_a_marker():
    values = [5.0] * 40
    assert marked_points(values) == list(range(0, 40, 3))
    values[7:20] = [NAN] * 13
    values[10] = 5.0
    assert set(marked_points(values)) >= {10}
    for line in plot_run(noisy_records()).axes[2].lines:
        if line.get_label() in ('head', 'all'):
            assert line.get_marker() not in ('', 'None')
    assert marked_points([NAN, 1.0]) == [0, 1]


def test_batch_that_the_log_does_not_tell_has_no_line():
    figure = plot_run(noisy_records(batch=None))
    assert [line.get_label() for line in figure.axes[2].lines] == ['head', 'all']
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ['head', 'whole network', *LINES]


def test_only_panels_with_values_are_shown():
    silent = noisy_records(mu=False)
    labels = [panel.get_ylabel() for panel in plot_run(silent).axes]
    assert labels == ['gradient variance $\\Phi$', 'noise scale in images']


def test_panel_in_which_nothing_is_resolved_says_so():
    records = [
        record | {'agvm/noise_scale_head': NAN, 'agvm/noise_scale_all': NAN}
        for record in noisy_records()
    ]
    for given, texts in ((noisy_records(), []), (records, ['not resolved'])):
        panel = plot_run(given).axes[2]
        assert [text.get_text() for text in panel.texts] == texts


def test_log_without_variances_is_an_error():
    with pytest.raises(ValueError, match='VarianceSyncHook'):
        plot_run(RECORDS[:1])
