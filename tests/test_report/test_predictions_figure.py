"""Figure of predictions: the boxes and texts in its panels."""

from types import SimpleNamespace

import numpy as np
import torch
from matplotlib.axes import Axes
from mmengine.structures import InstanceData

from demo.predictions import plot_predictions

CLASSES = ('one', 'two')


def make_result(scores: list[float]) -> tuple[np.ndarray, SimpleNamespace]:
    """Return a black image with two boxes and as many predictions."""
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0], [80.0, 2.0, 95.0, 30.0]])
    labels = torch.tensor([0, 1])
    sample = SimpleNamespace(
        gt_instances=InstanceData(bboxes=boxes, labels=labels),
        pred_instances=InstanceData(
            bboxes=boxes + 1, labels=labels, scores=torch.tensor(scores)
        ),
    )
    return np.zeros((96, 96, 3), dtype=np.uint8), sample


def drawn(panel: Axes) -> dict[str, tuple[float, ...]]:
    """Return the boxes of a panel as (x, y, width, height) by their texts."""
    boxes = [(*p.get_xy(), p.get_width(), p.get_height()) for p in panel.patches]
    return dict(zip([t.get_text() for t in panel.texts], boxes, strict=True))


def test_true_boxes_are_above_predictions_with_high_scores():
    figure = plot_predictions([make_result([0.9, 0.4])], CLASSES)
    truth, found = figure.axes
    # The center of pixel 0 is at 0, so its edge is at -0.5.
    assert drawn(truth) == {
        'one': (9.5, 19.5, 20.0, 20.0),
        'two': (79.5, 1.5, 15.0, 28.0),
    }
    assert drawn(found) == {'one  0.90': (10.5, 20.5, 20.0, 20.0)}
    assert found.get_title(loc='left') == 'predictions, score at least 0.5'


def test_threshold_includes_lower_scores():
    results = [make_result([0.9, 0.4])]
    _, found = plot_predictions(results, CLASSES, score_threshold=0.3).axes
    assert list(drawn(found)) == ['one  0.90', 'two  0.40']


def test_text_stays_inside_the_image():
    truth, _ = plot_predictions([make_result([0.9, 0.4])], CLASSES).axes
    first, second = truth.texts
    assert (first.get_ha(), first.get_va()) == ('left', 'baseline')
    assert (second.get_ha(), second.get_va()) == ('right', 'top')


def test_images_are_arranged_in_bands():
    results = [make_result([0.9, 0.4]) for _ in range(3)]
    panels = plot_predictions(results, CLASSES, columns=2).axes
    assert len(panels) == 8
    assert [bool(panel.images) for panel in panels] == [True] * 5 + [False, True, False]
