"""Measure the gradient noise scale of every module, without training.

    python tools/noise_scale.py CONFIG CHECKPOINT --images 4096 --out noise.png

Runs training images forward and backward through a checkpoint, without a step, and
prints Phi and mu of each module at batches from 32 to 10,240, measured where the images
suffice and predicted beyond, with intervals of 95%. CONFIG is any config of MMDetection
or MMSegmentation, with AGVM or not, also from their packages (mmdet::...).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from mmengine.dist import get_rank, get_world_size
from rich.console import Console
from rich.progress import Progress

from agvm_mm import cli
from agvm_mm.report.figures import plot_gradient_noise, save_figure
from agvm_mm.report.gradient_noise.intervals import NoiseReport
from agvm_mm.report.gradient_noise.replicas import Setup, measure
from agvm_mm.report.gradient_noise.text import describe, write_json


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_flags(parser)
    parser.add_argument('checkpoint', help='path of the checkpoint')
    cli.add_launcher_flags(parser)
    parser.add_argument(
        '--images',
        type=cli.count,
        default=4096,
        help='training images to run; rounded down to whole blocks of replicas; '
        'default: %(default)s',
    )
    parser.add_argument(
        '--images-per-replica',
        type=cli.count,
        help="images of one backward pass; by default the config's batch_size",
    )
    parser.add_argument('--json', help='write the result to this file')
    parser.add_argument('--out', nargs='+', help='pictures to write')
    args = parser.parse_args(argv)
    known = Figure().canvas.get_supported_filetypes()
    for path in args.out or ():
        if Path(path).suffix[1:].lower() not in known:
            parser.error(f'--out {path}: the suffix must be one of {", ".join(known)}')
    return args


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write the files."""
    cfg = cli.load_config(args.config, args.cfg_options)
    setup = Setup(
        cfg,
        args.checkpoint,
        images=args.images,
        images_per_replica=args.images_per_replica,
        launcher=args.launcher,
    )
    first = get_rank() == 0
    if first and setup.images != args.images:
        print(
            f'--images {args.images}: rounded down to {setup.images}, whole blocks of '
            f'{setup.block_size} x {setup.images_per_replica} images'
        )
    with Progress(console=Console(stderr=True), disable=not first) as bar:
        images = bar.add_task(f'{setup.images:,} images', total=setup.images)
        per_step = setup.images_per_replica * get_world_size()
        sums = measure(setup, lambda: bar.advance(images, per_step))
    report = NoiseReport(sums, setup.anchor, setup.ratio_bounds)
    if not first:
        return
    print(describe(report, setup.gradient, setup.notes))
    if args.json:
        write_json(
            Path(args.json),
            report,
            config=args.config,
            checkpoint=args.checkpoint,
            gradient=setup.gradient,
            notes=setup.notes,
        )
    if args.out:
        title = f'{Path(args.config).stem}, {report.images:,} images'
        save_figure(plot_gradient_noise(report, title=title), args.out)
        print(*args.out)


def main() -> int:
    """Run, and return the exit status."""
    args = parse_args()
    try:
        run(args)
    except (
        FileNotFoundError,
        FloatingPointError,
        KeyError,
        ModuleNotFoundError,
        TypeError,
        ValueError,
    ) as error:
        print(f'{type(error).__name__}: {cli.message_of(error)}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
