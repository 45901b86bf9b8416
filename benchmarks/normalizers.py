"""CPU time of an update with each setting of ``normalizers``, in turns.

    python benchmarks/normalizers.py    # about 3 minutes

The digits twins train on random images of 128 x 128 pixels with 1 and 8 objects, in
micro-batches of two, on one core. Data loading is not timed. Other programs hardly
affect CPU time. The last column is an update with a second forward pass: what a pass
that counts costs at least.
"""

import argparse
import copy
import logging
import time
from collections.abc import Sequence
from statistics import median
from types import SimpleNamespace

import torch
from common import report
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS

from agvm_mm.report.plan import use_toolbox
from agvm_mm.training.dataloader import UpdateWindow
from agvm_mm.training.normalizers import MODES, CountingWrapper, Normalizers
from agvm_mm.training.random_images import random_batches
from agvm_mm.training.update import Update
from agvm_mm.validation import check_number
from gpu_check.tables import table

BASE = report.ROOT / 'configs' / '_base_' / 'models'
TWINS = dict(
    RetinaNet='retinanet_r18_w16_fpn.py',
    FCOS='retinanet_r18_w16_fpn.py',
    MaskRCNN='mask-rcnn_r18_w16_fpn.py',
    FasterRCNN='faster-rcnn_r18_w16_fpn.py',
)
FCOS_HEAD = dict(
    type='FCOSHead',
    num_classes=10,
    in_channels=48,
    feat_channels=48,
    stacked_convs=2,
    norm_cfg=None,
    strides=[8, 16, 32],
    regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
)
"""Head of an FCOS with the backbone and neck of the RetinaNet."""


def settings_of(name: str) -> ConfigDict:
    """Return the config of a model without pretrained weights."""
    model = Config.fromfile(BASE / TWINS[name]).model
    model.backbone.pop('init_cfg')
    if name == 'FCOS':
        model.type = 'FCOS'
        model.bbox_head = ConfigDict(FCOS_HEAD)
        model.pop('train_cfg')
    return model


class Training:
    """Updates of a model with one setting.

    Args:
        name: Key of ``TWINS``.
        mode: Setting of ``normalizers``.
    """

    def __init__(self, name: str, mode: str) -> None:
        torch.manual_seed(0)
        model = MODELS.build(settings_of(name))
        model.init_weights()
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        self._runner = SimpleNamespace(
            model=model,
            optim_wrapper=OptimWrapper(optimizer),
            message_hub=MessageHub(f'{name} {mode}'),
            cfg={},
            logger=logging.getLogger(mode),
        )
        self._batch = random_batches(model)[-1]
        self._normalizers = Normalizers(mode)
        self._normalizers.prepare(self._runner)

    def update(self, micro_batches: int) -> float:
        """Run one update, and return its CPU time in seconds."""
        runner = self._runner
        sizes = [len(self._batch['inputs'])] * micro_batches
        batches = [copy.deepcopy(self._batch) for _ in sizes]
        window = UpdateWindow(iter(batches), sizes)
        start = time.process_time()
        update = Update(runner.model, runner.optim_wrapper, sizes, sum(sizes))
        with self._normalizers.of_update(runner, window) as taken:
            for _ in sizes:
                update.train_step(next(taken))
        update.finish(self._normalizers.correction)
        return time.process_time() - start

    def second_pass(self, micro_batches: int) -> float:
        """Return the CPU time of forward passes without gradient in seconds."""
        batches = [copy.deepcopy(self._batch) for _ in range(micro_batches)]
        model, wrapper = self._runner.model, CountingWrapper(self._runner.optim_wrapper)
        start = time.process_time()
        with torch.no_grad():
            for batch in batches:
                model.train_step(batch, wrapper)
        return time.process_time() - start


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all settings in turns and print the median ratios to the first."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--micro-batches', type=int, default=4)
    args = parser.parse_args(arguments)
    check_number('--rounds', args.rounds, low=1, integer=True)
    check_number('--micro-batches', args.micro_batches, low=1, integer=True)
    torch.set_num_threads(1)
    use_toolbox(Config(dict(default_scope='mmdet')))
    rows = []
    for name in TWINS:
        trainings = [Training(name, mode) for mode in (MODES[0], *MODES)]
        for training in trainings:
            for _ in range(9):  # 'average' counts these.
                training.update(args.micro_batches)
        ratios: list[list[float]] = [[] for _ in range(len(MODES) + 1)]
        for number in range(args.rounds):
            times = {}
            for index in range(len(trainings)):
                turn = (index + number) % len(trainings)
                times[turn] = trainings[turn].update(args.micro_batches)
            times[len(trainings)] = times[0] + trainings[0].second_pass(
                args.micro_batches
            )
            for index, found in enumerate(ratios):
                found.append(times[index + 1] / times[0])
        rows.append((name, ratios))
    columns = [('CPU time of an update', lambda row: row[0])]
    for index, mode in enumerate(MODES):
        again = ' again' * (not index)
        columns.append((f'{mode}{again}', lambda row, i=index: spread(row[1][i])))
    columns.append(('two forward passes', lambda row: spread(row[1][-1])))
    print(table(columns, rows), flush=True)


def spread(ratios: Sequence[float]) -> str:
    """Return the median and the middle half of ratios."""
    ordered, quarter = sorted(ratios), len(ratios) // 4
    return (
        f'{median(ratios):.3f} ({ordered[quarter]:.3f} to {ordered[-1 - quarter]:.3f})'
    )


if __name__ == '__main__':
    main()
