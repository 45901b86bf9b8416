"""Training of a small float64 network on several ranks, against the reference.

:class:`ReferenceAGVM` runs the same training from the definitions, in one process and
without torch.distributed.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from agvm_mm.estimators import ESTIMATORS
from agvm_mm.method.modules import assign_modules
from gpu_check.engines import optimizer_for, whole, wrap
from gpu_check.golden import largest
from gpu_check.ranks import rank_device
from gpu_check.reference import Arrays, ReferenceAGVM
from gpu_check.toy import OPTIMIZERS, ToyDetector, make_images, make_wrapper

SCHEDULE = dict(interval=2, begin=1)
UPDATES = 20
CASES = [(o, e, a) for o in OPTIMIZERS for e in ESTIMATORS for a in (1, 2)]
"""Optimizer, estimator and micro-batches of an update."""
# Rounding of float64 over all updates; a wrong formula is off by more than 1e-3.
TOLERANCE = 1e-9

Trained = tuple[Arrays, list[tuple[dict[str, float], dict[str, float], dict]]]
"""Parameters by name; mu, Phi, and averages of signal and noise of each update."""


def shard(
    update: int, rank: int, micro_batch: int, accumulation: int, ranks: int
) -> tuple[Tensor, Tensor]:
    """Return 4 images of one micro-batch of one rank, on the CPU."""
    inputs, targets = make_images(4 * ranks * accumulation, seed=update)
    start = 4 * (rank * accumulation + micro_batch)
    return inputs[start : start + 4], targets[start : start + 4]


def in_buckets(model: nn.Module, **ddp_kwargs: Any) -> DistributedDataParallel:
    """Wrap a model in DDP with buckets of 100 bytes, so that there are several."""
    # Older releases of torch ignore the setting for the first one.
    with mock.patch.object(dist, '_DEFAULT_FIRST_BUCKET_BYTES', 100):
        return DistributedDataParallel(model, **dict(bucket_cap_mb=1e-4) | ddp_kwargs)


def train_rank(
    optimizer: str,
    estimator: str,
    accumulation: int = 1,
    use_mask_head: bool = True,
    engine: str = 'ddp',
    **ddp_kwargs: Any,
) -> Trained:
    """Train on this rank, on its device."""
    rank, ranks, device = dist.get_rank(), dist.get_world_size(), rank_device()
    model = ToyDetector(use_mask_head=use_mask_head).to(device)
    ddp = wrap(engine, model, partial(in_buckets, **ddp_kwargs))
    wrapper = make_wrapper(
        model,
        optimizer_for(engine, OPTIMIZERS[optimizer]),
        estimator=estimator,
        attach_to=ddp,
        schedule=SCHEDULE,
        accumulative_counts=accumulation,
        # The images of a rank's update count as one.
        images_per_pass=ranks / accumulation,
    )
    history = []
    for update in range(UPDATES):
        for micro_batch in range(accumulation):
            images = shard(update, rank, micro_batch, accumulation, ranks)
            with wrapper.optim_context(ddp):
                loss = ddp(*(part.to(device) for part in images))['loss']
            wrapper.update_params(loss)
        agvm = wrapper.agvm
        noise = agvm.noise.averages()
        history.append((agvm.multipliers, agvm.variances, noise))
    parameters = {k: whole(p).cpu().numpy() for k, p in model.named_parameters()}
    return parameters, history


def train_reference(
    optimizer: str,
    estimator: str,
    ranks: int,
    accumulation: int,
    use_mask_head: bool = True,
) -> Trained:
    """Run the same training on full gradients, without torch.distributed."""
    model = ToyDetector(use_mask_head=use_mask_head)
    reference = ReferenceAGVM(
        {k: p.detach().numpy() for k, p in model.named_parameters()},
        assign_modules(model),
        optimizer=optimizer,
        lr=OPTIMIZERS[optimizer]['lr'],
        weight_decay=OPTIMIZERS[optimizer]['weight_decay'],
        estimator=estimator,
        **SCHEDULE,
    )
    history = []
    for update in range(UPDATES):
        model.load_state_dict(
            {k: torch.from_numpy(v) for k, v in reference.parameters.items()}
        )
        replicas = []
        for rank in range(ranks):
            model.zero_grad()
            for micro_batch in range(accumulation):
                images = shard(update, rank, micro_batch, accumulation, ranks)
                (model(*images)['loss'] / accumulation).backward()
            replicas.append(
                {k: p.grad.numpy().copy() for k, p in model.named_parameters()}
            )
        reference.step(replicas)
        noise = {
            name: (signal, ranks * noise)
            for name, (signal, noise) in reference.noise_averages().items()
        }
        history.append((dict(reference.multipliers), dict(reference.variances), noise))
    return reference.parameters, history


def train_cases() -> dict[tuple[str, str, int], Trained]:
    """Train every case of ``CASES`` on this rank."""
    return {
        case: train_rank(*case, gradient_as_bucket_view=case[2] == 1) for case in CASES
    }


def parity_differences(by_rank: Sequence[dict]) -> dict[str, float]:
    """Compare the results of :func:`train_cases` of all ranks.

    Returns:
        Largest difference of Phi, of mu and of a parameter from the reference, and
        between the 'ranks', which is 0 if they are equal to the last bit.
    """
    found: dict[str, list[float]] = {'Phi': [], 'mu': [], 'parameters': [], 'ranks': []}
    for optimizer, estimator, accumulation in CASES:
        expected = train_reference(optimizer, estimator, len(by_rank), accumulation)
        first, *others = (by[optimizer, estimator, accumulation] for by in by_rank)
        for name, value in difference(first, expected).items():
            found[name].append(value)
        for other in others:
            found['ranks'] += difference(other, first).values()
    return {name: largest(values) for name, values in found.items()}


def train_engines(engines: Sequence[str]) -> dict[tuple, Trained]:
    """Train with each engine and with DDP on this rank, with every estimator."""
    return {
        (engine, case): train_rank(*case, engine=engine)
        for engine in ('ddp', *engines)
        for case in CASES
        if case[2] == 1
    }


def engine_differences(by_rank: Sequence[dict]) -> dict[str, float]:
    """Compare the results of :func:`train_engines` of all ranks with those of DDP.

    Returns:
        Largest difference of each quantity by engine, such as 'zero Phi', and between
        the 'ranks'.
    """
    first, *others = by_rank
    found: dict[str, list[float]] = {'ranks': []}
    for (engine, case), trained in first.items():
        if engine != 'ddp':
            for name, value in difference(trained, first['ddp', case]).items():
                found.setdefault(f'{engine} {name}', []).append(value)
        for other in others:
            found['ranks'] += difference(other[engine, case], trained).values()
    return {name: largest(values) for name, values in found.items()}


def difference(one: Trained, other: Trained) -> dict[str, float]:
    """Return the largest difference between two trainings, by quantity."""
    (parameters, history), (expected, expected_history) = one, other
    mu, phi = [], []
    for mine, yours in zip(history, expected_history, strict=True):
        mu += [mine[0][name] - value for name, value in yours[0].items()]
        phi += [mine[1][name] - value for name, value in yours[1].items()]
    apart = [largest(value - expected[name]) for name, value in parameters.items()]
    return dict(Phi=largest(phi), mu=largest(mu), parameters=largest(apart))
