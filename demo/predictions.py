"""Figure of the ground truth and the predictions of a detector."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

from agvm_mm.report.figures.style import ORANGE, SKY_BLUE

TRUE_COLOR = SKY_BLUE
PREDICTED_COLOR = ORANGE


def predict(
    cfg: Config, checkpoint: str, indices: Iterable[int]
) -> tuple[list[tuple[np.ndarray, Any]], Sequence[str]]:
    """Run a detector on some images of the config's test set.

    Returns:
        For each image a pair of the RGB image, ``(H, W, 3)``, uint8, and its data
        sample with ``gt_instances`` and ``pred_instances``; and the names of the
        classes.
    """
    from mmdet.registry import DATASETS, MODELS

    init_default_scope(cfg.get('default_scope', 'mmdet'))
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    # The checkpoint has all weights, also the backbone's.
    model = MODELS.build(cfg.model)
    load_checkpoint(model, checkpoint, map_location='cpu')
    model.eval()
    items = [dataset[index] for index in indices]
    with torch.no_grad():
        samples = model.test_step(pseudo_collate(items))
    images = [item['inputs'].flip(0).permute(1, 2, 0).numpy() for item in items]
    return list(zip(images, samples, strict=True)), dataset.metainfo['classes']


def plot_predictions(
    results: Sequence[tuple[np.ndarray, Any]],
    classes: Sequence[str],
    *,
    score_threshold: float = 0.5,
    columns: int = 6,
) -> Figure:
    """Draw images twice, with the true boxes and, below, with the predicted ones."""
    bands = -(-len(results) // columns)
    columns = min(columns, len(results))
    figure = Figure(figsize=(1.9 * columns, 3.95 * bands), layout='constrained')
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for number, (image, sample) in enumerate(results):
        band, column = divmod(number, columns)
        truth, found = axes[2 * band, column], axes[2 * band + 1, column]
        for panel in (truth, found):
            panel.imshow(image, interpolation='nearest')
        objects = sample.gt_instances
        for box, label in zip(objects.bboxes, objects.labels, strict=True):
            _draw_box(truth, box.tolist(), classes[label], TRUE_COLOR)
        objects = sample.pred_instances
        objects = objects[objects.scores >= score_threshold]
        for box, label, score in zip(
            objects.bboxes, objects.labels, objects.scores, strict=True
        ):
            text = f'{classes[label]}  {score:.2f}'
            _draw_box(found, box.tolist(), text, PREDICTED_COLOR)
    below = f'predictions, score at least {score_threshold:g}'
    for band in range(bands):
        axes[2 * band, 0].set_title('ground truth', loc='left', fontsize=10)
        axes[2 * band + 1, 0].set_title(below, loc='left', fontsize=10)
    return figure


def _draw_box(panel: Axes, box: Sequence[float], text: str, color: str) -> None:
    x1, y1, x2, y2 = box
    # A dark rim makes boxes and text readable on any background.
    rim = [patheffects.withStroke(linewidth=2.5, foreground='black')]
    # The edges of pixels are half a pixel from their centers.
    panel.add_patch(
        Rectangle(
            (x1 - 0.5, y1 - 0.5),
            x2 - x1,
            y2 - y1,
            fill=False,
            edgecolor=color,
            linewidth=1.3,
            path_effects=rim,
        )
    )
    # Keep the text inside the image: it is above the box, or below it at the upper
    # edge, and ends with the box at the right edge.
    width = panel.get_xlim()[1]
    at_top, at_right = y1 < 9, x1 > width * 3 / 4
    panel.text(
        x2 if at_right else x1,
        y2 + 1 if at_top else y1 - 1.5,
        text,
        horizontalalignment='right' if at_right else 'left',
        verticalalignment='top' if at_top else 'baseline',
        color=color,
        fontsize=7,
        path_effects=rim,
    )
