"""MMEngine has the private attributes that this package touches."""

import ast
import importlib
import inspect
import pkgutil
import textwrap
from functools import cache
from pathlib import Path

import mmengine
import pytest
import torch
from cases import for_each
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import CheckpointHook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from runners import make_runner

import agvm_mm
from agvm_mm import engine
from agvm_mm.training.atomic import AtomicCheckpointHook

PACKAGE = Path(engine.__file__).parent
PRIVATE_NAMES = dict(
    optim_wrapper=('_accumulative_counts', '_clip_grad', '_inner_count', '_max_counts'),
    runner=(
        '_has_loaded',
        '_load_from',
        '_randomness_cfg',
        '_resume',
        '_train_dataloader',
    ),
    train_loop=('_epoch', '_iter'),
    model_wrapper=('_run_forward',),
    sampler=('_indices_of_rank',),
)
"""Private attributes by the object that has them."""
ALL_NAMES = {name for names in PRIVATE_NAMES.values() for name in names}
PRIVATE_OVERRIDES = {
    # MMEngine asks each scheduler for the value of a step by this method only.
    'ExponentialWarmupLR._get_value',
    # MMEngine saves by these methods only.
    'AtomicCheckpointHook._save_checkpoint_with_step',
    'AtomicCheckpointHook._save_best_checkpoint',
}
"""Private names of a base class that a class outside ``engine.py`` overrides."""


def missing_names(kind: str, owner: object) -> list[str]:
    """Return the private attributes that an object lacks."""
    return [name for name in PRIVATE_NAMES[kind] if not hasattr(owner, name)]


@pytest.fixture
def runner(tmp_path):
    return make_runner(
        tmp_path,
        dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
        images=4,
        batch_size=2,
        train_cfg=dict(by_epoch=True, max_epochs=1),
    )


def owners(runner) -> dict[str, list]:
    """Return objects of MMEngine by the keys of PRIVATE_NAMES."""
    optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.1)
    return dict(
        optim_wrapper=[OptimWrapper(optimizer), AmpOptimWrapper],
        runner=[runner],
        train_loop=[
            EpochBasedTrainLoop(runner, runner.train_dataloader, max_epochs=1),
            IterBasedTrainLoop(runner, runner.train_dataloader, max_iters=1),
        ],
        model_wrapper=[object.__new__(MMDistributedDataParallel)],
        sampler=[InfiniteSampler(range(4))],
    )


@for_each(PRIVATE_NAMES)
def test_mmengine_has_private_names(kind, runner):
    for owner in owners(runner)[kind]:
        if isinstance(owner, type):
            continue
        missing = missing_names(kind, owner)
        assert not missing, f'MMEngine {mmengine.__version__}: {owner} lacks {missing}'


def test_missing_name_is_found():
    assert missing_names('train_loop', object()) == ['_epoch', '_iter']


def test_overridden_methods_take_the_same_arguments():
    for ours, theirs, name in (
        (AtomicCheckpointHook, CheckpointHook, '_save_checkpoint_with_step'),
        (AtomicCheckpointHook, CheckpointHook, '_save_best_checkpoint'),
        (engine.ConditionalClipping, OptimWrapper, '_clip_grad'),
    ):
        found, expected = (
            list(inspect.signature(getattr(kind, name)).parameters)
            for kind in (ours, theirs)
        )
        assert found == expected


def private_names(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Return the private names that a module defines and those that it uses."""
    defined, used = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            is_stored = isinstance(node.ctx, ast.Store)
            on_self = isinstance(node.value, ast.Name) and node.value.id == 'self'
            (defined if is_stored and on_self else used).add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.ImportFrom) and 'mmengine' in (node.module or ''):
            used |= {alias.name for alias in node.names}
    return tuple(
        {n for n in names if n.startswith('_') and not n.startswith('__')}
        for names in (defined, used)
    )


def test_only_engine_uses_private_names_of_mmengine():
    defined: dict[Path, set[str]] = {}
    used: dict[Path, set[str]] = {}
    for path in PACKAGE.rglob('*.py'):
        if '.mim' not in path.parts:
            defined[path], used[path] = private_names(ast.parse(path.read_text()))
    ours = set().union(*defined.values()) - ALL_NAMES
    # Of other libraries: numpy, os and the public methods of named tuples; operators of
    # torch on lists of tensors have no other names.
    known = ours | {'_reconstruct', '_core', '_exit', '_asdict', '_replace'}
    for path, names in used.items():
        if path.name != 'engine.py':
            names = {name for name in names if not name.startswith('_foreach_')}
            assert names <= known, f'{path.name} uses {names - known}'
            assert not defined[path] & ALL_NAMES, path.name
    assert ALL_NAMES <= used[PACKAGE / 'engine.py'] | defined[PACKAGE / 'engine.py']


def classes_of_package() -> set[type]:
    """Return the classes that the modules of this package define."""
    names = [m.name for m in pkgutil.walk_packages(agvm_mm.__path__, 'agvm_mm.')]
    return {
        value
        for name in names
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type) and is_ours(value)
    }


def is_ours(kind: type) -> bool:
    return kind.__module__.split('.')[0] == 'agvm_mm'


@cache
def private_attributes(kind: type) -> set[str]:
    """Return the private names in the body of a class, and those it sets on self."""
    names = set(vars(kind)) - {'_abc_impl'}  # Python's, of each abstract class.
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # Written in C.
        source = ''
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == 'self':
                names.add(node.attr)
    return {name for name in names if name.startswith('_') and name[1] != '_'}


def overridden_names(kind: type) -> set[tuple[type, str]]:
    """Return the private names of foreign bases that a class or its mixins define."""
    ours = [base for base in kind.__mro__ if is_ours(base)]
    foreign = [base for base in kind.__mro__ if not is_ours(base)]
    theirs = set().union(*map(private_attributes, foreign))
    return {(base, name) for base in ours for name in private_attributes(base) & theirs}


def test_private_names_are_overridden_in_engine_only():
    elsewhere = set()
    for owner, name in set().union(*map(overridden_names, classes_of_package())):
        if owner.__module__ == engine.__name__:
            assert name in ALL_NAMES, f'{owner.__name__}.{name}'
        else:
            elsewhere.add(f'{owner.__name__}.{name}')
    assert elsewhere == PRIVATE_OVERRIDES


def test_overrides_are_found_in_mixins_and_on_self(monkeypatch):
    class Base:
        def __init__(self):
            self._count = 0

        def _step(self): ...

    class Mixin:
        def _step(self): ...

    class Child(Mixin, Base):
        def __init__(self):
            self._count = 1
            self._other = 2

    monkeypatch.setitem(globals(), 'is_ours', lambda kind: kind in (Mixin, Child))
    assert overridden_names(Child) == {(Mixin, '_step'), (Child, '_count')}
