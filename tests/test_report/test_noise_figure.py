"""Figure of noise scales: what is drawn for resolved and other modules."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_noise import BOUNDS, draw, sums_of

from agvm_mm.method.noise_scale import predicted_variance
from agvm_mm.report.figures import plot_gradient_noise, save_figure
from agvm_mm.report.gradient_noise.intervals import NoiseReport
from agvm_mm.report.gradient_noise.text import describe, write_json


@pytest.fixture
def report() -> NoiseReport:
    rng = np.random.default_rng(4)
    signals = dict(backbone=20.0, neck=0.0, head=80.0)
    gradients = {name: draw(rng, 32, s, 500.0) for name, s in signals.items()}
    found = NoiseReport(sums_of(gradients, 8, 2), 'backbone', BOUNDS)
    assert (
        found.modules['neck'].noise_scale is None and found.modules['head'].noise_scale
    )
    return found


def drawn(figure: Figure, panel: int) -> dict:
    lines = figure.axes[panel].get_lines()
    return {line.get_gid(): line for line in lines if line.get_gid()}


def test_lines_are_predictions_and_points_measurements(report: NoiseReport):
    figure = plot_gradient_noise(report, title='a title')
    phi, mu = drawn(figure, 0), drawn(figure, 1)
    assert 'predicted head' in phi and 'predicted neck' not in phi
    assert 'predicted head' in mu and 'predicted backbone' not in mu
    scale = report.modules['head'].noise_scale.value
    batches, values = phi['predicted head'].get_data()
    expected = [predicted_variance(batch, scale) for batch in batches]
    assert list(values) == pytest.approx(expected)
    points = {
        container.lines[0].get_gid(): container.lines[0].get_ydata()
        for container in figure.axes[0].containers
    }
    measured = [row for row in report.batches if row.measured and row.batch >= 32]
    for name in ('backbone', 'neck', 'head'):
        expected = [row.phi[name].value for row in measured]
        assert list(points[f'measured {name}']) == expected
    texts = [text.get_text() for text in figure.axes[2].texts]
    assert any('not resolved, above' in text for text in texts)


def bars(figure: Figure, panel: int) -> dict[str, list[tuple[float, float]]]:
    """Return the ends of the bars of each module."""
    return {
        container.lines[0].get_gid().removeprefix('measured '): [
            tuple(segment[:, 1]) for segment in container.lines[2][0].get_segments()
        ]
        for container in figure.axes[panel].containers
    }


def test_bars_are_the_intervals_of_the_text():
    rng = np.random.default_rng(4)
    head = draw(rng, 32, 80.0, 500.0)
    gradients = dict(
        backbone=draw(rng, 32, 20.0, 500.0),
        head=head,
        # Without noise: its Phi is 0, and most of its intervals are unknown. Of whole
        # numbers, whose sums are exact on every processor.
        same=np.repeat(head[:1].round(), 32, axis=0),
    )
    report = NoiseReport(sums_of(gradients, 8, 2), 'backbone', BOUNDS)
    figure = plot_gradient_noise(report)
    rows = [row for row in report.batches if row.measured and row.batch >= 32]
    for panel, value, names in [
        (0, 'phi', ('backbone', 'head', 'same')),
        (1, 'mu', ('head', 'same')),
    ]:
        found = bars(figure, panel)
        for name in names:
            expected = [getattr(row, value)[name][1:] for row in rows]
            assert np.isfinite(expected).all()
            np.testing.assert_allclose(found[name], expected, atol=1e-12)
    assert (0, 2) in [row.phi['same'][1:] for row in rows]
    assert 'nan' not in describe(report, 'gradient')


def test_two_replicas_can_be_drawn(tmp_path: Path):
    g = draw(np.random.default_rng(6), 2, 100.0, 1.0)
    report = NoiseReport(sums_of(dict(backbone=g), 32, 1), 'backbone', BOUNDS)
    save_figure(plot_gradient_noise(report), tmp_path / 'noise.png')
    assert (tmp_path / 'noise.png').read_bytes().startswith(b'\x89PNG')


def test_text_shows_the_lower_end_of_what_is_not_resolved(report: NoiseReport):
    lines = describe(report, 'gradient').splitlines()
    (line,) = [line for line in lines if line.startswith('neck ')]
    assert re.match(r'neck +not resolved +above [\d,]+ ', line)


def test_unknown_ends_of_intervals_are_null_in_the_file(tmp_path: Path):
    g = draw(np.random.default_rng(6), 2, 100.0, 1.0)
    report = NoiseReport(sums_of(dict(backbone=g), 32, 1), 'backbone', BOUNDS)
    write_json(tmp_path / 'noise.json', report)
    found = json.loads((tmp_path / 'noise.json').read_text())
    assert found['modules']['backbone']['noise_scale'] is None
    row = next(row for row in found['batches'] if row['measured'])
    phi = row['phi']['backbone']
    assert phi['value'] == pytest.approx(report.batches[1].phi['backbone'].value)
    assert all(end is None or 0 <= end <= 2 for end in phi.values())
