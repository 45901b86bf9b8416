"""plot_batch_sizes.py: the figure shows the stored results."""

from pathlib import Path

import plot_batch_sizes
import pytest

SEGMENTER = dict(model='sem-fpn', metric='mIoU', scenes=1024, epochs=2)
DETECTOR = dict(model='faster-rcnn', metric='bbox_mAP', scenes=1024, epochs=2)


def row(method: str, batch_size: int, mean: float) -> dict:
    """Return a row of ``best`` of a study."""
    return dict(
        method=method,
        batch_size=batch_size,
        mean=mean,
        lowest=mean - 1,
        highest=mean + 2,
    )


def test_markers_are_at_the_means_and_bars_span_the_seeds():
    best = [
        row('adamw', 256, 58.0),
        row('agvm-adamw', 64, 63.0),
        row('adamw', 64, 62.0),
        row('adamw-x1.4', 64, 99.0),  # Not drawn.
    ]
    study = dict(SEGMENTER, best=best)
    other = dict(DETECTOR, best=[row('adamw-x2 roi_head', 64, 9.0)])
    earlier = [row('adamw', 256, 57.0)]
    figure = plot_batch_sizes.plot_batch_sizes([(study, earlier), (other, [])])
    panel, second = figure.axes
    drawn = {
        line.get_gid(): list(line.get_ydata()) for line in panel.lines if line.get_gid()
    }
    assert drawn == {
        'result AdamW alone': [58.0, 62.0],
        'result AGVM + AdamW': [63.0],
        'earlier AdamW alone': [57.0],
    }
    spans = sorted(list(line.get_ydata()) for line in panel.lines if not line.get_gid())
    assert spans == [[56.0, 59.0], [57.0, 60.0], [61.0, 64.0], [62.0, 65.0]]
    assert [label.get_text() for label in panel.get_xticklabels()] == [
        '64\n(32 updates)',
        '256\n(8 updates)',
    ]
    assert panel.get_ylabel() == 'mIoU (%)'
    assert (second.get_title(), second.get_ylabel()) == ('Faster R-CNN', 'box mAP (%)')
    assert [line.get_gid() for line in second.lines if line.get_gid()] == [
        'result AdamW, 2 x rate on the head'
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == plot_batch_sizes.LABELS


def test_study_without_the_methods_is_rejected():
    study = dict(SEGMENTER, best=[row('lamb', 64, 1.0)])
    with pytest.raises(ValueError, match='no run of adamw, agvm-adamw'):
        plot_batch_sizes.plot_batch_sizes([(study, [])])


def test_command_draws_the_stored_results(tmp_path: Path):
    out = tmp_path / 'figure.svg'
    plot_batch_sizes.main(['--out', str(out)])
    assert '<svg' in out.read_text()
