"""Plan a large-batch run before a cluster is booked.

    python tools/plan.py CONFIG --gpus 64 --images-per-gpu 16

Prints updates, accumulation, the learning rate over the run, the updates at which AGVM
measures, and memory and traffic of an update. It warns of settings that deserve a
second look, and exits with status 1 if something cannot work. It trains nothing and
needs neither the data nor a GPU.
"""

import argparse
import sys

from agvm_mm import cli
from agvm_mm.analysis.plan import describe, make_plan


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_flags(parser)
    parser.add_argument('--gpus', type=int, required=True, help='total number of ranks')
    parser.add_argument(
        '--images-per-gpu', type=int, help="by default the config's batch_size"
    )
    parser.add_argument(
        '--images',
        type=int,
        help='size of the training set; known for the files of COCO and for ADE20K',
    )
    args = parser.parse_args()
    for name in ('gpus', 'images_per_gpu', 'images'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1')
    return args


def main() -> int:
    """Print the plan, and return the exit status."""
    args = parse_args()
    try:
        cfg = cli.load_config(args.config, args.cfg_options)
        plan = make_plan(cfg, args.gpus, args.images_per_gpu, args.images)
    except Exception as error:
        # Any error that the run would raise. KeyError shows its message in quotes.
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f'PROBLEM     {text}' if str(error) else f'PROBLEM     {error!r}')
        return 1
    print(describe(plan))
    return int(bool(plan.problems))


if __name__ == '__main__':
    sys.exit(main())
