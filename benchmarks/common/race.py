"""Updates to a fixed training loss at several batch sizes, learning rates searched.

Every training starts from the same weights and steps along gradients that are averaged
over micro-batches of one size, so that batch normalization is the same at every batch.
Images are drawn with replacement: the noise of an update is s^2 / B at any batch.

A run is a dict of 'start', the path of the checkpoint that it starts from; 'target',
the training loss to reach, averaged over 'window' images or one update; 'micro_batch',
the images of a backward pass; 'batch', those of an update; the constant 'lr'; and the
'seed' of the images and of dropout.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from torch.optim import SGD

from agvm_mm.report.gradient_noise.replicas import (
    build_model,
    load_weights,
    start_ranks,
)

LR_FACTOR = 2
"""Ratio of neighboring learning rates."""


class Course:
    """A model, and training images in memory.

    Args:
        cfg: Config with an SGD optimizer; its clipping and schedules are not used.
    """

    def __init__(self, cfg: Config) -> None:
        start_ranks(cfg, 'none')
        loader = Runner.build_dataloader(cfg.train_dataloader)
        self._collate = loader.collate_fn
        self._items = [loader.dataset[i] for i in range(len(loader.dataset))]
        self._settings = dict(cfg.optim_wrapper.optimizer)
        self._settings.pop('type')
        self.model: nn.Module = build_model(cfg)

    def train(self, run: dict, limit: int, save: Path) -> dict[str, Any]:
        """Train until the target; return updates (None before it) and losses.

        Stops after ``limit`` updates and half a window. Saves the weights it has there.
        """
        load_weights(self.model, run['start'])
        settings = self._settings | dict(lr=run['lr'])
        optimizer = SGD(self.model.parameters(), **settings)
        torch.manual_seed(run['seed'])
        losses: list[float] = []
        reached = None
        window = math.ceil(run['window'] / run['batch'])
        while reached is None and len(losses) < limit + window // 2:
            losses.append(self._update(optimizer, run['batch'], run['micro_batch']))
            if not math.isfinite(losses[-1]):
                break
            reached = crossing(losses, run['target'], window)
        if reached is not None:
            torch.save(dict(state_dict=self.model.state_dict()), save)
        return dict(updates=reached, losses=[round(loss, 5) for loss in losses])

    def _update(self, optimizer: SGD, batch: int, micro_batch: int) -> float:
        optimizer.zero_grad()
        indices = torch.randint(len(self._items), (batch,)).tolist()
        total, count = 0.0, math.ceil(batch / micro_batch)
        for part in range(count):
            items = [self._items[i] for i in indices[part::count]]
            data = self.model.data_preprocessor(self._collate(items), training=True)
            losses = self.model(**data, mode='loss')
            loss, _ = self.model.parse_losses(losses)
            (loss * (len(items) / batch)).backward()
            total += loss.item() * len(items) / batch
        optimizer.step()
        return total


def crossing(losses: Sequence[float], target: float, window: int) -> float | None:
    """Return the updates after which a moving mean is at a target, or None.

    A mean of ``window`` losses counts at the middle of its window. Between two updates
    it is a line. Each loss is that before the step.
    """
    before = None
    for last in range(window, len(losses) + 1):
        mean = sum(losses[last - window : last]) / window
        # The first loss is before any update.
        middle = last - 1 - (window - 1) / 2
        if mean <= target:
            return middle - (0 if before is None else (target - mean) / (before - mean))
        before = mean
    return None


def search(
    train: Callable[[float, int], float | None], first: float, max_updates: int
) -> tuple[float | None, dict[float, float | None]]:
    """Return the best learning rate and the updates of each that was tried.

    Goes up in factors of 2 while it gets better, and down from the first in the same
    way. A learning rate that needs more updates than the best so far is stopped.
    ``train`` takes a learning rate and the most updates and returns those it needs.
    """
    tried: dict[float, float | None] = {}
    best: float | None = None

    def better(lr: float) -> bool:
        nonlocal best
        limit = max_updates if best is None else math.ceil(tried[best])
        tried[lr] = train(lr, min(limit, max_updates))
        won = tried[lr] is not None and (best is None or tried[lr] < tried[best])
        if won:
            best = lr
        return won

    better(first)
    for factor in (LR_FACTOR, 1 / LR_FACTOR):
        lr = first * factor
        while better(lr):
            lr *= factor
        if factor > 1 and best not in (None, first):
            break
    return best, tried


def read_or_train(path: Path, run: dict, limit: int, train: Callable[[], dict]) -> dict:
    """Return the result in a file, if it is of this run, else train and write it.

    A result that reached the target holds for any limit.
    """
    if path.exists():
        found = json.loads(path.read_text())
        done = found['updates'] is not None or found['limit'] >= limit
        if found['settings'] == run and done:
            return found
    found = dict(settings=run, limit=limit, **train())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found) + '\n')
    return found


def fit_fewest(
    batches: Sequence[int], updates: Sequence[float], noise_scale: float
) -> tuple[float, float]:
    """Return S_min of S_min (1 + B_noise / B) and the root mean square error.

    Both are of the logarithm: an error of 0.1 is about 10%.
    """
    logs = np.log(np.array(updates) / (1 + noise_scale / np.array(batches)))
    return math.exp(logs.mean()), float(logs.std())


def fit_noise_scale(
    batches: Sequence[int], updates: Sequence[float]
) -> tuple[float, float, float]:
    """Return B_noise and S_min that fit best, and the error of :func:`fit_fewest`.

    B_noise is searched from 1/100 of the smallest to 100 times the largest batch.
    """
    grid = np.geomspace(min(batches) / 100, max(batches) * 100, 4001).tolist()
    scale = min(grid, key=lambda each: fit_fewest(batches, updates, each)[1])
    return scale, *fit_fewest(batches, updates, scale)
