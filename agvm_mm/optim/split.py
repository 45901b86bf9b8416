"""Learning rate of each module while the optimizer steps."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Values of a group that hold one entry for each of its parameters.
LISTS = ('params', 'param_names')
IMMUTABLE = (bool, float, int, str, type(None))


@contextmanager
def scaled_learning_rates(
    optimizer: Optimizer,
    module_of: Mapping[int, str],
    multipliers: Mapping[str, float],
) -> Iterator[None]:
    """Split each parameter group by module while the context lasts.

    The parts have the settings of their group and its learning rate times the
    multiplier of their module. Afterwards the optimizer has its own groups again, with
    what a step changed in the parts; its state is by parameter and needs nothing. With
    multipliers of 1 the groups stay as they are.

    Args:
        optimizer: Any optimizer of torch.
        module_of: Module of a parameter by its ``id``. Others keep their rate.
        multipliers: By module.

    Raises:
        RuntimeError: If a step changes a learning rate, or another setting differently
            in the parts of one group.
    """
    if all(multiplier == 1 for multiplier in multipliers.values()):
        yield
        return
    groups = optimizer.param_groups
    parts = [_split(group, module_of, multipliers) for group in groups]
    optimizer.param_groups = split = [part for own in parts for part in own]
    rates = [part['lr'] for part in split]
    try:
        yield
    finally:
        optimizer.param_groups = groups
    if any(part['lr'] is not rate for part, rate in zip(split, rates, strict=True)):
        raise RuntimeError(
            f'{type(optimizer).__name__} changes the learning rate of its groups while '
            'it steps, which AGVM cannot keep; use a param_scheduler'
        )
    for group, own in zip(groups, parts, strict=True):
        _write_back(group, own, type(optimizer).__name__)


def _split(
    group: dict[str, Any],
    module_of: Mapping[int, str],
    multipliers: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Return one group for each module in a group, in order of appearance."""
    indices: dict[str | None, list[int]] = {}
    for index, parameter in enumerate(group['params']):
        indices.setdefault(module_of.get(id(parameter)), []).append(index)
    lists = [key for key in LISTS if key in group]
    parts = []
    for module, own in indices.items():
        part = {
            key: value if isinstance(value, IMMUTABLE) else copy.deepcopy(value)
            for key, value in group.items()
            if key not in LISTS
        }
        part |= {key: [group[key][index] for index in own] for key in lists}
        part['lr'] = group['lr'] * multipliers.get(module, 1.0)
        parts.append(part)
    return parts


def _write_back(group: dict[str, Any], parts: list[dict], optimizer: str) -> None:
    """Copy what a step has changed in the parts of a group."""
    # A schedule, not a step, keeps initial_lr.
    skipped = [*LISTS, 'lr', 'initial_lr']
    for key in {key for part in parts for key in part}.difference(skipped):
        values = [part.get(key) for part in parts]
        if not all(_equal(value, values[0]) for value in values):
            raise RuntimeError(
                f"{optimizer} changes '{key}' of a parameter group differently for "
                'each learning rate, so AGVM, which steps every module with its own, '
                'cannot keep it; use another optimizer'
            )
        group[key] = values[0]


def _equal(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    return first == second
