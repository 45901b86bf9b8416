"""Train a detector or segmenter from a config, with MMDetection's flags."""

import argparse
import os

from mmengine.config import DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from agvm_mm import cli
from agvm_mm.checkpoint.loading import allow_runner_checkpoints


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config file')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints; by default work_dirs/<config name>',
    )
    parser.add_argument(
        '--amp', action='store_true', help='train in automatic mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate linearly from auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint; without a path, from the latest one of '
        'the work folder',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override those of the config, as key=value; a key may '
        'be dotted, a list is key="[a,b]" or key=a,b',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the ranks',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args(argv)


def main():
    """Build a Runner from the config and train."""
    args = parse_args()
    # torchrun sets it; other launchers pass the argument.
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))

    cfg = cli.load_config(args.config, args.cfg_options)
    cli.set_work_dir(cfg, args.work_dir, args.config)
    if args.amp:
        cli.enable_amp(cfg)
    if args.auto_scale_lr:
        cli.enable_auto_scale_lr(cfg)
    cli.set_resume(cfg, args.resume)
    cli.prepare_launcher(cfg, args.launcher)
    allow_runner_checkpoints()

    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.train()


if __name__ == '__main__':
    main()
