"""MMEngine has the private attributes that this package touches."""

import ast
import inspect
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from runners import make_runner

from agvm_mm import engine

PACKAGE = Path(engine.__file__).parent
ALL_NAMES = {name for names in engine.PRIVATE_NAMES.values() for name in names}


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
        checkpoint_hook=[CheckpointHook()],
    )


@pytest.mark.parametrize('kind', engine.PRIVATE_NAMES)
def test_mmengine_has_private_names(kind, runner):
    for owner in owners(runner)[kind]:
        if isinstance(owner, type):
            continue
        missing = engine.missing_names(kind, owner)
        assert not missing, f'MMEngine {mmengine.__version__}: {owner} lacks {missing}'


def test_missing_name_is_found():
    assert engine.missing_names('train_loop', object()) == ['_epoch', '_iter']


def test_overridden_methods_take_the_same_arguments():
    for ours, theirs, name in (
        (engine.OpenCheckpointHook, CheckpointHook, '_save_checkpoint_with_step'),
        (engine.OpenCheckpointHook, CheckpointHook, '_save_best_checkpoint'),
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
    # Of other libraries: numpy and os.
    known = ours | {'_reconstruct', '_core', '_exit', '_get_ddp_logging_data'}
    for path, names in used.items():
        if path.name != 'engine.py':
            assert names <= known, f'{path.name} uses {names - known}'
            assert not defined[path] & ALL_NAMES, path.name
    assert ALL_NAMES <= used[PACKAGE / 'engine.py'] | defined[PACKAGE / 'engine.py']
