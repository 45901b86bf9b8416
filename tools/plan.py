"""Plan a large-batch run before a cluster is booked.

    python tools/plan.py CONFIG --gpus 64 --images-per-gpu 16
    python tools/plan.py CONFIG --gpus 64 --log work_dirs/NAME --images-per-second 900

Prints updates, accumulation, the learning rate over the run, the updates at which AGVM
measures, and the memory of each GPU. It warns about questionable settings, and exits
with status 1 if something cannot work. It trains nothing and needs no GPU; the data
only to count the images of sets other than COCO and ADE20K.

With the noise scales of an earlier run of the model (--log) or of tools/noise_scale.py
(--noise) it predicts what the batch saves against half of it and where the multipliers
settle; with --images-per-second also hours, and GPU-hours of half and double the batch.
"""

import argparse
import math
import sys

from mmengine.config import Config
from mmengine.registry import MODELS

from agvm_mm import cli
from agvm_mm.report.forecast import noise_of_file, noise_of_run
from agvm_mm.report.plan import Plan, describe, quiet
from agvm_mm.training.batch import BatchSize
from agvm_mm.training.normalizers import (
    MODES,
    describe_losses,
    describe_unreached,
    find_normalizers,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_flags(parser)
    parser.add_argument(
        '--gpus', type=cli.count, required=True, help='total number of ranks'
    )
    parser.add_argument(
        '--images-per-gpu', type=cli.count, help="by default the config's batch_size"
    )
    parser.add_argument(
        '--images',
        type=cli.count,
        help='size of the training set; by default counted if its files are here, and '
        'known for those of COCO and for ADE20K',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate linearly from auto_scale_lr.base_batch_size',
    )
    noise = parser.add_mutually_exclusive_group()
    noise.add_argument(
        '--log',
        metavar='RUN',
        help='work folder of a run of this model with VarianceSyncHook, or its '
        'scalars.json: its last noise scales',
    )
    noise.add_argument(
        '--noise',
        metavar='FILE',
        help='noise scales that tools/noise_scale.py has written (--json)',
    )
    parser.add_argument(
        '--images-per-second',
        type=float,
        help='training images per second of the whole cluster, all GPUs together, for '
        'hours and GPU-hours',
    )
    parser.add_argument(
        '--losses',
        action='store_true',
        help='also build the model and say whether its losses on small random images '
        'depend on how an update is divided',
    )
    args = parser.parse_args()
    speed = args.images_per_second
    if speed is not None and not 0 < speed < math.inf:
        parser.error(f'--images-per-second must be more than 0, got {speed}')
    return args


def describe_model(cfg: Config, plan: Plan) -> list[str]:
    """Return lines about the losses of a model, which is built.

    Raises:
        TypeError: If the model cannot have the normalizers of the config.
    """
    model, mode = MODELS.build(cfg.model), cfg.train_cfg.get('normalizers', MODES[0])
    batch = BatchSize(plan.gpus, plan.images_per_gpu, plan.micro_batches)
    losses = describe_losses(model, batch, mode) or 'no difference found'
    lines = [f'losses      {losses}']
    if mode != MODES[0]:
        found = find_normalizers(model, mode)
        if found.unreached:
            lines.append(f'warning     {describe_unreached(model, mode, found)}')
    return lines


def main() -> int:
    """Print the plan, and return the exit status."""
    args = parse_args()
    try:
        cfg = cli.load_config(args.config, args.cfg_options)
        if args.auto_scale_lr:
            cli.enable_auto_scale_lr(cfg)
        noise = None
        if args.log is not None:
            noise = noise_of_run(args.log)
        elif args.noise is not None:
            noise = noise_of_file(args.noise)
        with quiet():  # Toolboxes print while they are imported.
            plan = Plan(
                cfg,
                args.gpus,
                args.images_per_gpu,
                args.images,
                noise=noise,
                images_per_second=args.images_per_second,
            )
            losses = describe_model(cfg, plan) if args.losses else []
    except Exception as error:
        # Any error that the run would raise.
        print(f'PROBLEM     {cli.message_of(error) or repr(error)}')
        return 1
    print('\n'.join([describe(plan), *losses]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
