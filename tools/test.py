"""Evaluate a checkpoint with a config: MMDetection's flags but --show and --tta."""

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
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and metrics; by default work_dirs/<config name>',
    )
    parser.add_argument('--out', help='store the predictions in this .pkl file')
    parser.add_argument(
        '--show-dir',
        help='draw predictions into this folder: within that of the run, those of a '
        'segmenter within the work folder',
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
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out}')
    return args


def main():
    """Build a Runner from the config and test."""
    args = parse_args()
    # torchrun sets it; other launchers pass the argument.
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))

    cfg = cli.load_config(args.config, args.cfg_options)
    cli.set_work_dir(cfg, args.work_dir, args.config)
    cfg.load_from = args.checkpoint
    if args.show_dir:
        cli.draw_predictions(cfg, args.show_dir)
    if args.out:
        cli.dump_predictions(cfg, args.out)
    cli.prepare_launcher(cfg, args.launcher)
    allow_runner_checkpoints()

    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.test()


if __name__ == '__main__':
    main()
