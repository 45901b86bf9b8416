"""Draw the ground truth and the predictions of a detector, one above the other.

python tools/analysis/plot_predictions.py CONFIG CHECKPOINT --out predictions.png
"""

import argparse

from agvm_mm import cli
from agvm_mm.report.figures import save_figure
from agvm_mm.training.loading import allow_runner_checkpoints
from demo.predictions import plot_predictions, predict


def main() -> None:
    """Draw the first images of a config's test set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='path of the config file')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument('--out', default='predictions.png', help='picture to write')
    parser.add_argument('--num-images', type=int, default=6, help='number of images')
    parser.add_argument(
        '--score-threshold',
        type=float,
        default=0.5,
        help='lowest score of the predictions that are drawn',
    )
    args = parser.parse_args()
    cfg = cli.load_config(args.config)
    allow_runner_checkpoints()
    results, classes = predict(cfg, args.checkpoint, range(args.num_images))
    figure = plot_predictions(results, classes, score_threshold=args.score_threshold)
    save_figure(figure, args.out)
    print(args.out)


if __name__ == '__main__':
    main()
