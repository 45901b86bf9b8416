"""Stock configs of the toolboxes: what AGVM's lines in the README do to each.

Every config is built without memory for weights. Its optimizer with AGVM must be the
one that MMEngine builds without: each parameter with the same learning rate, weight
decay, momentum and whatever else its group has.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from agvm_mm.analysis.plan import (
    build_model,
    in_float32,
    is_wrapper,
    quiet,
    variance_hooks,
)
from agvm_mm.cli import AMP_WRAPPERS, stock_folder
from agvm_mm.engine import accumulative_counts
from agvm_mm.optim.agvm_wrapper import CONSTRUCTOR_SETTINGS
from agvm_mm.preflight import check_one_hook
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
PAGE = """\
# Stock configs

`make zoo` writes this page. It adds the lines of the [README](../README.md#usage) to
each config of {versions} that trains something ({configs}),
builds the model without memory for weights and compares its optimizer with the one that
MMEngine builds without AGVM: for each parameter learning rate, weight decay, momentum
or betas and all other settings of its group; the class of the optimizer, clipping,
accumulation and precision."""
MODULES = """\
The [default split](extending.md#the-split-into-modules) of each type of model.
`make test` builds the examples and compares their modules and optimizers."""
# Keys of a group that do not say how its parameters are stepped.
LABELS = ('params', 'param_names', 'module')


@dataclass(frozen=True)
class Result:
    """What the lines of the README do to one config.

    Args:
        config: Name as MMEngine's ``get_config`` takes it, such as
            'mmdet::detr/detr_r50_8xb2-150e_coco.py'.
        outcome: A key of ``OUTCOMES``.
        reason: Why it is not 'same'.
        family: Type of the model.
        modules: AGVM's modules.
    """

    config: str
    outcome: str
    reason: str = ''
    family: str = ''
    modules: tuple[str, ...] = ()


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
    lines = dict(
        type=AGVM_WRAPPERS[type_name(stock.get('type', 'OptimWrapper'))],
        constructor='AGVMOptimWrapperConstructor',
    )
    if 'constructor' in stock:
        lines['base_constructor'] = stock.constructor
    hook = dict(type='VarianceSyncHook', interval=10, begin=1020)
    cfg.merge_from_dict(dict(optim_wrapper=lines, default_hooks=dict(agvm=hook)))


def examine_all(
    configs: Iterable[str], report: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    """Examine configs, equal ones once.

    Args:
        configs: Names.
        report: Called with each result.

    Returns:
        Results, without those of configs that train nothing.
    """
    known: dict[str, Result] = {}
    results = []
    with _one_rank():
        for config in configs:
            result = examine(config, known)
            if result is not None:
                results.append(result)
                report(result)
    return results


def examine(config: str, known: dict[str, Result] | None = None) -> Result | None:
    """Compare the optimizers of a config with and without AGVM.

    Args:
        config: Name of the config.
        known: Results of equal models and optimizers, which is extended.

    Returns:
        The result, None if the config trains nothing.
    """
    known = {} if known is None else known
    try:
        cfg = load(config)
    except Exception as error:  # Whatever the toolbox raises is the reason.
        return Result(config, 'not read', _reason(error))
    if any(cfg.get(key) is None for key in ('model', 'optim_wrapper', 'train_cfg')):
        return None
    key = repr((cfg.get('default_scope'), cfg.model, cfg.optim_wrapper))
    if key not in known:
        with quiet():
            known[key] = _examine(cfg)
    found = known[key]
    family = type_name(cfg.model.type)
    return Result(config, found.outcome, found.reason, family, found.modules)


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


def _examine(cfg: Config) -> Result:
    try:
        model = build_model(cfg)
        stock = build_optim_wrapper(model, in_float32(cfg.optim_wrapper))
    except Exception as error:  # Whatever the toolbox raises is the reason.
        return Result('', 'not built', _reason(error))
    mixed = is_wrapper(cfg, AmpOptimWrapper)
    add_agvm(cfg)
    try:
        _check_wrapper_arguments(cfg.optim_wrapper)
        check_one_hook('VarianceSyncHook', len(variance_hooks(cfg)))
        wrapper = build_optim_wrapper(model, in_float32(cfg.optim_wrapper))
    except Exception as error:
        return Result('', 'refused', _reason(error))
    different = differences(model, stock, wrapper)
    if is_wrapper(cfg, AmpOptimWrapper) != mixed:
        different.append('precision')
    return Result(
        '',
        'different' if different else 'same',
        '; '.join(different[:3]),
        modules=tuple(wrapper.multipliers),
    )


def _check_wrapper_arguments(settings: ConfigDict) -> None:
    """Check what :func:`in_float32` would drop, such as ``loss_scale``."""
    known = argument_names(resolve_type(settings.type, OPTIM_WRAPPERS))
    given = set(settings) - {'type', 'base_constructor', *CONSTRUCTOR_SETTINGS}
    check_arguments(settings.type, given, known)


def differences(
    model: nn.Module, stock: OptimWrapper, wrapper: OptimWrapper
) -> list[str]:
    """Return how an optimizer wrapper differs from the stock one of the same model."""
    found = [
        f'{name}: {ours!r} instead of {theirs!r}'
        for name, theirs, ours in (
            ('optimizer', type(stock.optimizer), type(wrapper.optimizer)),
            ('clip_grad', stock.clip_grad_kwargs, wrapper.clip_grad_kwargs),
            (
                'accumulative_counts',
                accumulative_counts(stock),
                accumulative_counts(wrapper),
            ),
        )
        if theirs != ours
    ]
    theirs, ours = settings_by_parameter(stock), settings_by_parameter(wrapper)
    found += [
        f'{name}: {ours.get(id(parameter))} instead of {theirs.get(id(parameter))}'
        for name, parameter in model.named_parameters()
        if ours.get(id(parameter)) != theirs.get(id(parameter))
    ]
    return found


def settings_by_parameter(wrapper: OptimWrapper) -> dict[int, list[dict]]:
    """Return the settings of the groups of each parameter, by its ``id``."""
    found: dict[int, list[dict]] = {}
    for group in wrapper.optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key not in LABELS}
        for parameter in group['params']:
            found.setdefault(id(parameter), []).append(settings)
    return found


@contextmanager
def _one_rank() -> Iterator[None]:
    """Start a process group of one rank, which MMCV's SyncBN needs to be built."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _reason(error: Exception) -> str:
    """Return the message of an error in a line, without folders of this machine."""
    text = ' '.join(str(error).split()) or type(error).__name__
    text = text.partition(', the current sys.path')[0]
    return re.sub(r"[^\s'\"]*/(?=\.mim/)", '', text)


def page(results: list[Result]) -> str:
    """Return the page of the documentation with the results, in Markdown."""
    versions = ' and '.join(
        f'{title} {import_module(name).__version__}'
        for name, title in TOOLBOXES.items()
    )
    parts = [
        PAGE.format(versions=versions, configs=len(results)),
        '\n'.join(_outcome_table(results)),
        '## Not the same',
        '\n'.join(_reason_table(results)),
        '## Modules of each model',
        MODULES,
        '\n'.join(_module_table(results)),
    ]
    return '\n\n'.join(parts) + '\n'


def _outcome_table(results: list[Result]) -> Iterator[str]:
    counts = Counter((r.outcome, r.config.partition('::')[0]) for r in results)
    yield f'| | {" | ".join(TOOLBOXES.values())} | |'
    yield '| --- | --- | --- | --- |'
    for outcome, meaning in OUTCOMES.items():
        numbers = ' | '.join(str(counts[outcome, toolbox]) for toolbox in TOOLBOXES)
        yield f'| {outcome} | {numbers} | {meaning} |'


def _reason_table(results: list[Result]) -> Iterator[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.outcome != 'same':
            key = (result.outcome, result.reason)
            reasons.setdefault(key, []).append(result.config)
    yield '| | configs | reason | for example |'
    yield '| --- | --- | --- | --- |'
    for key in sorted(reasons, key=lambda key: (key[0], -len(reasons[key]))):
        outcome, reason = key
        cell = reason.replace('|', '\\|').replace('`', "'")
        example = reasons[key][0]
        yield f'| {outcome} | {len(reasons[key])} | `{cell}` | `{example}` |'


def _module_table(results: list[Result]) -> Iterator[str]:
    configs: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for result in results:
        if result.outcome == 'same':
            key = (result.family, result.modules)
            configs.setdefault(key, []).append(result.config)
    yield '| model | modules | configs | for example |'
    yield '| --- | --- | --- | --- |'
    for (family, modules), names in sorted(configs.items()):
        yield f'| {family} | {", ".join(modules)} | {len(names)} | `{names[0]}` |'
