"""Figure of accuracy against the learning rate."""

import pytest

from benchmarks.paper.sensitivity_figure import plot_sensitivity

pytestmark = pytest.mark.evidence


def results(batch_size: int, method: str, values: dict[float, list]) -> list[dict]:
    """Return a result for each value, those of a rate with the seeds 0, 1, ..."""
    return [
        dict(
            run=dict(batch_size=batch_size, seed=seed),
            method=method,
            lr=lr,
            value=value,
        )
        for lr, found in values.items()
        for seed, value in enumerate(found)
    ]


def test_curves_are_means_at_rates_with_all_seeds():
    runs = results(64, 'adamw', {0.1: [50, 52], 0.2: [54, 58], 0.4: [60, None]})
    runs += results(64, 'agvm-adamw', {0.1: [70], 0.2: [55, 57]})
    runs += results(256, 'adamw', {0.1: [40]})
    figure = plot_sensitivity(runs, 'mIoU')
    small, large = figure.axes
    assert (small.get_title(), large.get_title()) == ('batch 64', 'batch 256')
    plain, agvm = small.get_lines()
    # One seed or a diverged run: not drawn.
    assert (list(plain.get_xdata()), list(plain.get_ydata())) == ([0.1, 0.2], [51, 56])
    assert (list(agvm.get_xdata()), list(agvm.get_ydata())) == ([0.2], [56])
    assert plain.get_color() != agvm.get_color()
    assert plain.get_color() == large.get_lines()[0].get_color()
    low, high = small.collections[0].get_datalim(small.transData).intervaly
    assert (low, high) == (50, 58)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        'adamw',
        'agvm-adamw',
    ]


def test_curves_have_the_seeds_that_all_methods_have():
    runs = results(64, 'adamw', {0.1: [50, 52, 90], 0.2: [54, 58, 90]})
    runs += results(64, 'agvm-adamw', {0.1: [70], 0.2: [55, 57]})
    (panel,) = plot_sensitivity(runs, 'mIoU').axes
    plain, agvm = panel.get_lines()
    assert (list(plain.get_xdata()), list(plain.get_ydata())) == ([0.1, 0.2], [51, 56])
    assert (list(agvm.get_xdata()), list(agvm.get_ydata())) == ([0.2], [56])


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match='no run is finished'):
        plot_sensitivity([], 'mIoU')
