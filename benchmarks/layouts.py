"""Accuracy of one total batch on other layouts, by what losses are divided by.

    python benchmarks/layouts.py    # about 3 hours on one core

The RetinaNet twin trains on the embedded digits from the same scenes and seeds, in 300
updates of 32 images with AdamW and BatchNorm in evaluation mode. A layout m x b has m
micro-batches of b images. Each run is trained once; its result is in ``--work-dirs``.
"""

import json
import statistics
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import torch
from common import report
from common.twins import TWINS, name_run
from mmengine.config import Config

from agvm_mm import cli
from agvm_mm.training.atomic import replaced_when_whole
from agvm_mm.training.normalizers import MODES
from agvm_mm.validation import check_number
from benchmarks.paper.runs import last_result
from gpu_check.tables import table

BATCH, UPDATES = 32, 300
WARMUP, DROPS = 45, (210, 270)
LR = 0.001
# Images of a micro-batch, and the setting of `normalizers`. In a single micro-batch
# 'update' is 'micro_batch'.
CELLS = (
    (32, 'micro_batch'),
    (32, 'average'),
    *((images, mode) for images in (2, 1) for mode in MODES),
)
KEY = 'coco/bbox_mAP'


def run_config(images: int, mode: str, seed: int) -> Config:
    """Return the config of a run."""
    cfg = Config.fromfile(TWINS / 'retinanet_r18_w16_fpn_adamw_b256_10e_digits.py')
    cfg.train_cfg = dict(
        type='LargeBatchIterTrainLoop',
        max_iters=UPDATES,
        val_interval=UPDATES,
        total_batch_size=BATCH,
        normalizers=mode,
    )
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=WARMUP),
        dict(type='MultiStepLR', by_epoch=False, milestones=list(DROPS), gamma=0.1),
    ]
    cfg.optim_wrapper.optimizer.lr = LR
    cfg.model.backbone.norm_eval = True
    cfg.train_dataloader.batch_size = images
    cfg.randomness = dict(seed=seed)
    cfg.log_processor.by_epoch = False
    cfg.log_level = 'WARNING'
    # Without an entry the Runner saves.
    cfg.default_hooks.update(checkpoint=None)
    del cfg.default_hooks['visualization']
    return cfg


def train(images: int, mode: str, seed: int, work_dirs: Path) -> float:
    """Return the box mAP of a run in percent, which is trained if it was not before."""
    file = work_dirs / f'{images}_{mode}_{seed}.json'
    if not file.exists():
        cfg = run_config(images, mode, seed)
        folder = file.with_suffix('')
        name_run(cfg, folder)
        cli.build_runner(cfg, 'none').train()
        with replaced_when_whole(file) as path:
            path.write_text(json.dumps(100 * last_result(folder, KEY)))
    return json.loads(file.read_text())


COLUMNS = (
    ('layout', itemgetter('layout')),
    ('`normalizers`', lambda row: f"`'{row['normalizers']}'`"),
    ('box mAP', lambda row: f'{statistics.mean(row["mAP"]):.1f}'),
    ('standard deviation', lambda row: f'{statistics.stdev(row["mAP"]):.1f}'),
    ('by seed', lambda row: ', '.join(f'{value:.1f}' for value in row['mAP'])),
)


def describe(result: dict) -> str:
    """Return the result as Markdown."""
    settings = result['settings']
    return (
        f'# Accuracy of batch {settings["batch"]} on other layouts\n\n'
        f'RetinaNet twin on the digits, AdamW with lr {settings["lr"]:g}, '
        f'{settings["updates"]} updates, BatchNorm in evaluation mode, '
        f'{settings["seeds"]} seeds; m x b is m micro-batches of b images '
        '(`python benchmarks/layouts.py`).\n\n'
        f'{table(COLUMNS, result["rows"])}\n\n'
        f'{report.describe_machine(result["environment"])}.'
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all cells with each seed, and write a table."""
    parser = report.make_parser(__doc__)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument(
        '--work-dirs', type=Path, default=report.ROOT / 'work_dirs/layouts'
    )
    args = parser.parse_args(arguments)
    check_number('--seeds', args.seeds, low=2, integer=True)
    torch.set_num_threads(1)
    values = {cell: [] for cell in CELLS}
    for seed in range(args.seeds):
        for cell in CELLS:
            values[cell].append(train(*cell, seed, args.work_dirs))
            print(*cell, seed, values[cell][-1], flush=True)
    result = dict(
        benchmark='layouts',
        settings=dict(batch=BATCH, updates=UPDATES, lr=LR, seeds=args.seeds),
        rows=[
            dict(layout=f'{BATCH // images} x {images}', normalizers=mode, mAP=found)
            for (images, mode), found in values.items()
        ],
        environment=report.environment(1),
    )
    report.write(args.out, 'layouts', result, describe(result))


if __name__ == '__main__':
    main()
