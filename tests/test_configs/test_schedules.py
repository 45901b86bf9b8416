"""Learning rate of every config at every update."""

import json
from functools import cache

import numpy as np
import torch
from cases import for_each
from mmengine.registry import PARAM_SCHEDULERS
from zoo import LEAVES, ZOO, epoch_of, load, name_of, updates_of

import agvm_mm  # noqa: F401  registers ExponentialWarmupLR

# Updates of warm-up by total batch size.
WARMUP = {
    'coco': {
        32: 7330,
        256: 920,
        512: 460,
        960: 246,
        1024: 230,
        1536: 154,
        4096: 58,
        10240: 24,
    },
    'ade20k-512x512': {
        32: 12_632,
        256: 1579,
        512: 790,
        1024: 395,
        2048: 198,
        10240: 40,
    },
}
MILESTONES = {'12e': [8, 11], '14e': [10, 12], '16e': [12, 14]}


def reference(leaf: str) -> list[dict]:
    """Return the schedule with the warm-up and the length of ADE20K in updates."""
    name = name_of(leaf)
    if name.dataset == 'digits':
        return [
            dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=48),
            dict(type='MultiStepLR', milestones=[7, 9], gamma=0.1, begin=0, end=10),
        ]
    warmup = dict(
        type='ExponentialWarmupLR',
        start_factor=0.001,
        by_epoch=False,
        end=WARMUP[name.dataset][name.batch],
    )
    if name.dataset == 'coco':
        decay = dict(
            type='MultiStepLR',
            by_epoch=True,
            end=int(name.length[:-1]),
            milestones=MILESTONES[name.length],
            gamma=0.1,
        )
    else:
        decay = dict(
            type='PolyLR',
            by_epoch=False,
            begin=warmup['end'],
            end=updates_of(leaf),
            power=0.9,
            eta_min=0.0,
        )
    return [warmup, decay]


def base_lr(leaf: str) -> float:
    return load(leaf).optim_wrapper.optimizer.lr


def run_of(leaf: str) -> tuple[str, int, str]:
    name = name_of(leaf)
    return name.dataset, name.batch, name.length


@cache
def lrs_of(run: tuple[str, int, str]) -> list[float]:
    """Return the learning rates of all leaves with this data set, batch and length."""
    return sorted({base_lr(leaf) for leaf in LEAVES if run_of(leaf) == run})


@cache
def step_through(
    schedulers: str, run: tuple[str, int, str], epoch: int | None, updates: int
) -> np.ndarray:
    """Return the learning rates at each update, one column for each of ``lrs_of``.

    Args:
        schedulers: Settings of the schedulers as JSON.
        run: Data set, batch and length.
        epoch: Updates of an epoch; None if the loop has no epochs.
        updates: Updates of the run.
    """
    groups = [
        dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=lr) for lr in lrs_of(run)
    ]
    optimizer = torch.optim.SGD(groups)
    built = [
        PARAM_SCHEDULERS.build(
            settings, default_args=dict(optimizer=optimizer, epoch_length=epoch)
        )
        for settings in json.loads(schedulers)
    ]
    by_update = [scheduler for scheduler in built if not scheduler.by_epoch]
    by_epoch = [scheduler for scheduler in built if scheduler.by_epoch]
    rates = np.empty((updates, len(groups)))
    optimizer.step()
    for update in range(updates):
        rates[update] = [group['lr'] for group in optimizer.param_groups]
        is_end_of_epoch = epoch is not None and (update + 1) % epoch == 0
        # In the order of MMEngine's ParamSchedulerHook.
        for scheduler in by_update + by_epoch * is_end_of_epoch:
            scheduler.step()
    return rates


def learning_rates(leaf: str, schedulers: list[dict]) -> np.ndarray:
    """Return a leaf's learning rate at each update under these schedulers."""
    as_json = json.dumps(schedulers, sort_keys=True)
    run = run_of(leaf)
    rates = step_through(as_json, run, epoch_of(leaf), updates_of(leaf))
    return rates[:, lrs_of(run).index(base_lr(leaf))]


@for_each(LEAVES)
def test_learning_rate_equals_reference_at_every_update(leaf):
    found = learning_rates(leaf, load(leaf).param_scheduler)
    expected = learning_rates(leaf, reference(leaf))
    # To the last bit.
    np.testing.assert_array_equal(found, expected)


@for_each(ZOO)
def test_learning_rate_follows_formula(leaf):
    name, updates = name_of(leaf), updates_of(leaf)
    warmup = WARMUP[name.dataset][name.batch]
    update = np.arange(updates)
    expected = 0.001 ** np.maximum(1 - update / warmup, 0)
    if name.dataset == 'coco':
        for milestone in MILESTONES[name.length]:
            expected[milestone * epoch_of(leaf) :] *= 0.1
    else:
        # MMEngine's polynomial reaches 0 one step before its end.
        done = (update - warmup) / (updates - warmup - 1)
        expected *= (1 - np.maximum(done, 0)) ** 0.9
    found = learning_rates(leaf, load(leaf).param_scheduler) / base_lr(leaf)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)
