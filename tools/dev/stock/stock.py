"""Stock configs of the toolboxes: what AGVM's lines in the README do to each.

Every config is built without memory for weights. Its optimizer with AGVM must be the
one that MMEngine builds without: each parameter with the same learning rate, weight
decay, momentum and whatever else its group has.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from agvm_mm.cli import AMP_WRAPPERS, stock_folder
from agvm_mm.engine import accumulative_counts
from agvm_mm.optim.wrapper import CONSTRUCTOR_SETTINGS
from agvm_mm.report.plan import (
    build_model,
    in_float32,
    is_wrapper,
    quiet,
    variance_hooks,
)
from agvm_mm.training.variance_sync import check_one_hook
from agvm_mm.validation import (
    argument_names,
    check_arguments,
    resolve_type,
    type_name,
)

TOOLBOXES = {'mmdet': 'MMDetection', 'mmseg': 'MMSegmentation'}
"""Title of each toolbox."""

AGVM_WRAPPERS = {
    'OptimWrapper': 'AGVMOptimWrapper',
    'AmpOptimWrapper': AMP_WRAPPERS['AGVMOptimWrapper'],
}
"""What replaces each type of optimizer wrapper, as in the README."""

OUTCOMES = {
    'same': 'the optimizer is the stock one, parameter by parameter',
    'refused': 'AGVM raises an error that says why',
    'different': 'the optimizer is another one',
    'not built': 'the stock config does not build in this environment',
    'not read': 'the stock file does not load in this environment',
}
# Keys of a group that do not say how its parameters are stepped.
LABELS = ('params', 'param_names')


class Result(NamedTuple):
    """What the lines of the README do to one config.

    Attributes:
        config: Name as MMEngine's ``get_config`` takes it, such as
            'mmdet::detr/detr_r50_8xb2-150e_coco.py'.
        outcome: A key of ``OUTCOMES``.
        reason: Why it is not 'same'.
        family: Type of the model.
        modules: AGVM's modules.
        parameters: Number of the model's parameters.
    """

    config: str
    outcome: str
    reason: str = ''
    family: str = ''
    modules: tuple[str, ...] = ()
    parameters: int = 0


def stock_configs(toolbox: str) -> list[str]:
    """Return the names of a toolbox's configs, without those to inherit from."""
    folder = stock_folder(toolbox)
    paths = sorted(path.relative_to(folder) for path in folder.rglob('*.py'))
    return [
        f'{toolbox}::{path.as_posix()}' for path in paths if '_base_' not in path.parts
    ]


def add_agvm(cfg: Config) -> None:
    """Add the lines of the README to a config."""
    stock = cfg.optim_wrapper
    kind = type_name(stock.get('type', 'OptimWrapper'))
    lines = dict(type=AGVM_WRAPPERS[kind])
    hook = dict(type='VarianceSyncHook')
    cfg.merge_from_dict(dict(optim_wrapper=lines, default_hooks=dict(agvm=hook)))


def examine_all(
    configs: Iterable[str], report: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    """Examine configs that train something, and call ``report`` with each result."""
    known: dict[str, Result] = {}
    results = []
    with one_rank():
        for config in configs:
            result = _examine(config, known)
            if result is not None:
                results.append(result)
                report(result)
    return results


def _examine(config: str, known: dict[str, Result]) -> Result | None:
    """Return the result of a config, None if it trains nothing.

    Equal models and optimizers are compared once, and are known then.
    """
    try:
        cfg = load(config)
    except Exception as error:  # Whatever the toolbox raises is the reason.
        return Result(config, 'not read', reason_of(error))
    if any(cfg.get(key) is None for key in ('model', 'optim_wrapper', 'train_cfg')):
        return None
    key = repr((cfg.get('default_scope'), cfg.model, cfg.optim_wrapper))
    if key not in known:
        with quiet():
            known[key] = _compare(cfg)
    found = known[key]
    return found._replace(config=config, family=type_name(cfg.model.type))


def load(config: str) -> Config:
    """Read a stock config, for a model without the weights of a teacher."""
    toolbox, _, path = config.partition('::')
    folder = stock_folder(toolbox)
    cfg = Config.fromfile(folder / path)
    model = cfg.get('model') or {}
    model.pop('teacher_ckpt', None)
    if isinstance(model.get('teacher_config'), str):
        model.teacher_config = str(folder.parent / model.teacher_config)
    return cfg


def _compare(cfg: Config) -> Result:
    """Compare the optimizers of a config with and without AGVM."""
    try:
        model = build_model(cfg)
        stock = build_optim_wrapper(model, in_float32(cfg.optim_wrapper))
    except Exception as error:  # Whatever the toolbox raises is the reason.
        return Result('', 'not built', reason_of(error))
    mixed = is_wrapper(cfg, AmpOptimWrapper)
    add_agvm(cfg)
    try:
        _check_wrapper_arguments(cfg.optim_wrapper)
        check_one_hook(len(variance_hooks(cfg)))
        wrapper = build_optim_wrapper(model, in_float32(cfg.optim_wrapper))
        wrapper.make_agvm(model)
    except Exception as error:
        return Result('', 'refused', reason_of(error))
    different = differences(model, stock, wrapper)
    if is_wrapper(cfg, AmpOptimWrapper) != mixed:
        different.append('precision')
    return Result(
        '',
        'different' if different else 'same',
        '; '.join(different[:3]),
        modules=tuple(wrapper.agvm.parameters),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _check_wrapper_arguments(settings: ConfigDict) -> None:
    """Check what :func:`in_float32` would drop, such as ``loss_scale``."""
    known = argument_names(resolve_type(settings.type, OPTIM_WRAPPERS))
    given = set(settings) - {'type', *CONSTRUCTOR_SETTINGS}
    check_arguments(settings.type, given, known)


def differences(
    model: nn.Module, stock: OptimWrapper, wrapper: OptimWrapper
) -> list[str]:
    """Return how an optimizer wrapper differs from the stock one of the same model."""
    theirs, ours = settings_of(model, stock), settings_of(model, wrapper)
    return [
        f'{name}: {ours.get(name)} instead of {theirs.get(name)}'
        for name in theirs | ours
        if ours.get(name) != theirs.get(name)
    ]


def settings_of(model: nn.Module, wrapper: OptimWrapper) -> dict[str, Any]:
    """Return settings of an optimizer wrapper, and by parameter those of its groups."""
    found: dict[str, Any] = dict(
        optimizer=type(wrapper.optimizer),
        clip_grad=wrapper.clip_grad_kwargs,
        accumulative_counts=accumulative_counts(wrapper),
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in wrapper.optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key not in LABELS}
        for parameter in group['params']:
            found.setdefault(names[id(parameter)], []).append(settings)
    return found


@contextmanager
def one_rank() -> Iterator[None]:
    """Start a process group of one rank, which MMCV's SyncBN needs to be built."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def reason_of(error: Exception) -> str:
    """Return the message of an error in a line, without folders of this machine."""
    text = ' '.join(str(error).split()) or type(error).__name__
    text = text.partition(', the current sys.path')[0]
    return re.sub(r"[^\s'\"]*/(?=\.mim/)", '', text)
