"""Training of the small network with states on every rank or divided over the ranks."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mmengine.utils import digit_version
from torch import nn
from toy import OPTIMIZERS, ToyDetector, make_wrapper

from agvm_mm.estimators import ESTIMATORS
from gpu_check.engines import ENGINES, optimizer_for, whole, wrap
from gpu_check.parity import in_buckets, shard

SETTINGS = OPTIMIZERS | {'amsgrad': OPTIMIZERS['AdamW'] | dict(amsgrad=True)}
CASES = list(product(SETTINGS, ESTIMATORS, (1, 3), (None, 0.5)))
"""Optimizer, estimator, micro-batches of an update, largest norm of a gradient."""
UPDATES = 10

# By the version: a newer torch without what it needs is a failure.
needs_fsdp = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.13'),
    reason='FullyShardedModel needs torch 2.13',
)
DIVIDED = [
    pytest.param(e, marks=needs_fsdp if e == 'fsdp' else ()) for e in ENGINES[1:]
]
"""Engines that divide the state over the ranks."""

as_zero = partial(optimizer_for, 'zero')
UNITS = ('backbone.0', 'neck')
"""The rest, which is the last unit, crosses the borders of AGVM's modules."""


def build(
    engine: str,
    settings: dict,
    estimator: str,
    model: nn.Module | None = None,
    units: Sequence[str] = UNITS,
    **kwargs: Any,
) -> tuple:
    """Return network, the network as it is trained, and optimizer wrapper."""
    model = model or ToyDetector()
    trained = wrap(engine, model, in_buckets, units)
    settings = optimizer_for(engine, settings)
    wrapper = make_wrapper(
        model, settings, estimator=estimator, attach_to=trained, **kwargs
    )
    return model, trained, wrapper


def train(engine: str, case: tuple) -> tuple[dict, list]:
    """Return the parameters, and mu, Phi and averages after each update."""
    optimizer, estimator, accumulation, clip = case
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model, trained, wrapper = build(
        engine,
        SETTINGS[optimizer],
        estimator,
        accumulative_counts=accumulation,
        clip_grad=clip and dict(max_norm=clip),
        images_per_pass=ranks / accumulation,
        schedule=dict(interval=2, begin=0),
    )
    history = []
    for update in range(UPDATES):
        for part in range(accumulation):
            with wrapper.optim_context(trained):
                images = shard(update, rank, part, accumulation, ranks)
                loss = trained(*images)['loss']
            wrapper.update_params(loss)
        agvm = wrapper.agvm
        history.append((agvm.multipliers, agvm.variances, agvm.noise.averages()))
    return {k: whole(p).numpy() for k, p in model.named_parameters()}, history


def train_cases() -> dict:
    """Train every case of ``CASES`` with every engine."""
    return {
        (engine, *case): train(engine, case) for engine in ENGINES for case in CASES
    }
