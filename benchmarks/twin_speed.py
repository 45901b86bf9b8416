"""Images per second of a digits twin: as it is, and as accuracy.py trains it.

    python benchmarks/twin_speed.py --model sem-fpn

Trains both on one core in turns and times the second epoch, when batches are
loaded and collated as in the rest of a run. Validation is not timed. The figures are
images per second of CPU time, which other programs hardly affect.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from common import report, twins
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from agvm_mm import cli
from agvm_mm.validation import check_number
from gpu_check.tables import table


class EpochTimer(Hook):
    """Hook that measures the CPU time of the last epoch, in seconds."""

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the clock."""
        self.start = time.process_time()

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop the clock."""
        self.seconds = time.process_time() - self.start


def variants(model: str, batch_size: int, data: Path) -> dict[str, Config]:
    """Return the config of the twin as it is, and that of the study."""
    (path,) = twins.TWINS.glob(f'{model}_*_sgd_b256_*.py')
    scenes = data / twins.SCENES_FOLDER
    run = twins.Run(model, 'sgd', '', batch_size, 0, 0, 2, twins.SCENES)
    twin = Config.fromfile(path)
    twin.train_cfg.total_batch_size = batch_size
    twin.train_dataloader.dataset.data_root = f'{data / "digits"}/'
    twin.model.backbone.init_cfg.checkpoint = str(twins.backbone_file(scenes))
    return {'twin': twin, 'study': twins.run_config(run, scenes)}


def images_per_second(cfg: Config, images: int, folder: str, *, study: bool) -> float:
    """Train two epochs and return the images per CPU second of the second."""
    cfg.train_dataloader.dataset.indices = images
    cfg.train_cfg.max_epochs = 2
    for key in ('dataloader', 'cfg', 'evaluator'):
        cfg[f'val_{key}'] = cfg[f'test_{key}'] = None
    twins.name_run(cfg, Path(folder) / str(time.time_ns()))
    cfg.log_level = 'WARNING'
    runner = cli.build_runner(cfg, 'none')
    if study:
        twins.use_fast_layout(runner)
    timer = EpochTimer()
    runner.register_hook(timer, priority='VERY_HIGH')
    runner.train()
    return images / timer.seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both in turns and print the medians with the lowest and highest."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--model', choices=twins.START, default='sem-fpn')
    add('--batch-size', type=int, default=256)
    add('--images', type=int, default=512, help='images of an epoch')
    add('--rounds', type=int, default=3)
    folders = 'folder of both data sets: digits, and those of the study'
    add('--data', type=Path, default=report.ROOT / 'data', help=folders)
    args = parser.parse_args(arguments)
    check_number('--images', args.images, low=args.batch_size, integer=True)
    check_number('--rounds', args.rounds, low=1, integer=True)
    torch.set_num_threads(1)
    speeds: dict[str, list[float]] = dict(twin=[], study=[])
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            found = variants(args.model, args.batch_size, args.data.absolute())
            for name, cfg in found.items():
                study = name == 'study'
                speed = images_per_second(cfg, args.images, folder, study=study)
                speeds[name].append(speed)
    columns = [
        (args.model, lambda row: row[0]),
        ('images per second', lambda row: f'{median(row[1]):.0f}'),
        ('lowest to highest', lambda row: f'{min(row[1]):.0f} to {max(row[1]):.0f}'),
    ]
    print(table(columns, speeds.items()), flush=True)


if __name__ == '__main__':
    main()
