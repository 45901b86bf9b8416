"""Draw the ground truth and the predictions of a detector beside each other.

python tools/analysis/plot_predictions.py CONFIG CHECKPOINT --out predictions.png
"""

import argparse

import matplotlib.pyplot as plt
import torch
from matplotlib import patheffects
from matplotlib.patches import Rectangle
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

from agvm_mm import cli
from agvm_mm.checkpoint.loading import allow_runner_checkpoints

TRUE_COLOUR = '#56B4E9'
PREDICTED_COLOUR = '#E69F00'


def predict(cfg, checkpoint, indices):
    """Run a detector on images of the config's test set.

    Args:
        cfg (Config): The config.
        checkpoint (str): Path of the checkpoint.
        indices (Sequence[int]): Which images of the test set.

    Returns:
        tuple[list, Sequence[str]]: For each image a pair of the RGB image,
        ``(H, W, 3)``, uint8, and its data sample with ``gt_instances`` and
        ``pred_instances``; and the names of the classes.
    """
    from mmdet.registry import DATASETS, MODELS

    init_default_scope(cfg.get('default_scope', 'mmdet'))
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    # The checkpoint holds all weights, also the backbone's.
    model = MODELS.build(cfg.model)
    load_checkpoint(model, checkpoint, map_location='cpu')
    model.eval()
    items = [dataset[index] for index in indices]
    with torch.no_grad():
        samples = model.test_step(pseudo_collate(items))
    images = [item['inputs'].flip(0).permute(1, 2, 0).numpy() for item in items]
    return list(zip(images, samples, strict=True)), dataset.metainfo['classes']


def plot_predictions(results, classes, *, score_threshold=0.5, columns=6):
    """Draw images twice, with the true boxes and, below, with the predicted ones.

    Args:
        results (list): Images and data samples as :func:`predict` returns them.
        classes (Sequence[str]): Name of each class.
        score_threshold (float): Predictions below are left out.
        columns (int): Images side by side.

    Returns:
        Figure: The figure; the caller saves and closes it.
    """
    bands = -(-len(results) // columns)
    columns = min(columns, len(results))
    figure, axes = plt.subplots(
        2 * bands,
        columns,
        figsize=(1.9 * columns, 3.95 * bands),
        squeeze=False,
        layout='constrained',
    )
    for panel in axes.flat:
        panel.set_axis_off()
    for number, (image, sample) in enumerate(results):
        band, column = divmod(number, columns)
        truth, found = axes[2 * band, column], axes[2 * band + 1, column]
        for panel in (truth, found):
            panel.imshow(image, interpolation='nearest')
        # gt_instances is an InstanceData: tensors of boxes (x1, y1, x2, y2), labels
        objects = sample.gt_instances
        for box, label in zip(objects.bboxes, objects.labels, strict=True):
            _draw_box(truth, box.tolist(), classes[label], TRUE_COLOUR)
        objects = sample.pred_instances
        objects = objects[objects.scores >= score_threshold]
        for box, label, score in zip(
            objects.bboxes, objects.labels, objects.scores, strict=True
        ):
            text = f'{classes[label]}  {score:.2f}'
            _draw_box(found, box.tolist(), text, PREDICTED_COLOUR)
    for band in range(bands):
        axes[2 * band, 0].set_title('ground truth', loc='left', fontsize=10)
        axes[2 * band + 1, 0].set_title(
            f'predictions, score at least {score_threshold:g}', loc='left', fontsize=10
        )
    return figure


def _draw_box(panel, box, text, colour):
    x1, y1, x2, y2 = box
    # A dark rim keeps boxes and text legible on any background.
    rim = [patheffects.withStroke(linewidth=2.5, foreground='black')]
    # Edges of pixels lie half a pixel beside their middles.
    panel.add_patch(
        Rectangle(
            (x1 - 0.5, y1 - 0.5),
            x2 - x1,
            y2 - y1,
            fill=False,
            edgecolor=colour,
            linewidth=1.3,
            path_effects=rim,
        )
    )
    # The text stands above the box, or below it at the upper edge, and ends with the
    # box at the right edge.
    width = panel.get_xlim()[1]
    at_top, at_right = y1 < 9, x1 > width * 3 / 4
    panel.text(
        x2 if at_right else x1,
        y2 + 1 if at_top else y1 - 1.5,
        text,
        horizontalalignment='right' if at_right else 'left',
        verticalalignment='top' if at_top else 'baseline',
        color=colour,
        fontsize=7,
        path_effects=rim,
    )


def main():
    """Draw the first images of a config's test set."""
    from plot_variance import save_figure

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='path of the config file')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument('--out', default='predictions.png', help='picture to write')
    parser.add_argument('--num-images', type=int, default=6, help='how many images')
    parser.add_argument(
        '--score-threshold', type=float, default=0.5, help='leave out what is below'
    )
    args = parser.parse_args()
    plt.switch_backend('agg')
    cfg = cli.load_config(args.config)
    allow_runner_checkpoints()
    results, classes = predict(cfg, args.checkpoint, range(args.num_images))
    save_figure(
        plot_predictions(results, classes, score_threshold=args.score_threshold),
        args.out,
    )
    print(args.out)


if __name__ == '__main__':
    main()
