"""Everything that MMEngine's Runner stores is loaded safely, and nothing else."""

import inspect
import io
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import for_each
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS, Registry
from mmengine.runner import checkpoint
from runners import make_runner
from test_resume import assert_same

from agvm_mm.engine import ParamScheduler
from agvm_mm.training.loading import LOADS_SAFELY, allow_runner_checkpoints

pytestmark = pytest.mark.skipif(
    not LOADS_SAFELY, reason='before 2.6 torch loads anything'
)


@pytest.fixture(autouse=True)
def allow():
    import mmdet.engine  # noqa: F401  registers its schedulers

    allow_runner_checkpoints()


def registered(registry: Registry) -> dict[str, type]:
    """Return the classes of a registry and of all toolboxes below it."""
    found = dict(registry.module_dict)
    for child in registry.children.values():
        found |= registered(child)
    return found


def saved_and_loaded(content):
    """Return what torch loads safely, and what it loads without any check."""
    file = io.BytesIO()
    torch.save(content, file)
    loaded = []
    for weights_only in (True, False):
        file.seek(0)
        loaded.append(torch.load(file, weights_only=weights_only))
    return loaded


SCHEDULER_ARGUMENTS = dict(
    param_name='lr',
    step_size=2,
    milestones=[2, 4],
    gamma=0.5,
    eta_max=0.3,
    total_steps=12,
    periods=[3, 9],
    restart_weights=[1, 0.5],
    T_max=12,
    eta_min=0.01,
    end=12,
)


def make_scheduler(kind, **changes):
    """Build a scheduler with all of its required arguments."""
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    bases = [base for base in kind.__mro__ if issubclass(base, ParamScheduler)]
    owner = next(b for b in bases if b.__name__.endswith('ParamScheduler'))
    known = inspect.signature(owner).parameters
    arguments = SCHEDULER_ARGUMENTS | changes
    if kind is not owner:  # Knows which of lr and momentum.
        arguments.pop('param_name')
    if 'eta_min_ratio' in known:
        known = known.keys() - {'eta_min_ratio'}
    arguments = {name: arguments[name] for name in known if name in arguments}
    return kind(optimizer=OptimWrapper(optimizer), **arguments), optimizer


def step(scheduler, steps):
    for number in range(steps):
        if getattr(scheduler, 'need_val_args', False):
            scheduler.step(dict(loss=np.float64(1 + number)))
        else:
            scheduler.step()


@for_each(lambda: sorted(registered(PARAM_SCHEDULERS)))
def test_state_of_every_registered_scheduler(name):
    kind = registered(PARAM_SCHEDULERS)[name]
    scheduler, optimizer = make_scheduler(kind)
    step(scheduler, 3)
    loaded, expected = saved_and_loaded(scheduler.state_dict())
    assert loaded == expected
    later, later_optimizer = make_scheduler(kind)
    later.load_state_dict(loaded)
    groups, saved = later_optimizer.param_groups, optimizer.param_groups
    groups[0].update({key: saved[0][key] for key in ('lr', 'momentum')})
    for _ in range(4):
        step(scheduler, 1)
        step(later, 1)
        assert groups[0]['lr'] == saved[0]['lr']
        assert groups[0]['momentum'] == saved[0]['momentum']


def test_both_strategies_of_one_cycle():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    for strategy in ('cos', 'linear'):
        scheduler = registered(PARAM_SCHEDULERS)['OneCycleLR'](
            optimizer, eta_max=1.0, total_steps=9, anneal_strategy=strategy
        )
        loaded, expected = saved_and_loaded(scheduler.state_dict())
        assert loaded['anneal_func'] is expected['anneal_func']


NOT_BUILT = {'Optimizer', 'LBFGS', 'SparseAdam', 'ZeroRedundancyOptimizer'}
"""Abstract, with a closure, for sparse gradients, for several ranks."""


@for_each(lambda: sorted(registered(OPTIMIZERS).keys() - NOT_BUILT))
def test_state_of_every_registered_optimizer(name):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = registered(OPTIMIZERS)[name]([parameter], lr=0.1)
    wrapper = OptimWrapper(optimizer)
    wrapper.update_params(parameter.square().sum())
    loaded, expected = saved_and_loaded(wrapper.state_dict())
    assert_same(loaded, expected)


SCALARS = sorted(
    {
        kind
        for kind in np.sctypeDict.values()
        if not issubclass(kind, np.object_ | np.void)
    },
    key=lambda kind: kind.__name__,
)


def check_kind_of_number(kind):
    if issubclass(kind, np.timedelta64 | np.datetime64):
        values = [kind(1, 's'), kind(1, 'D')]
    elif issubclass(kind, np.str_ | np.bytes_):
        values = [kind(b'x' * n if kind is np.bytes_ else 'x' * n) for n in range(20)]
    else:
        values = [kind(1)]
    for value in values:
        for content in (value, np.array([value, value]), {'x': [value]}):
            loaded, expected = saved_and_loaded(content)
            assert type(loaded) is type(expected)
            assert np.array_equal(loaded, expected)
            if isinstance(content, np.ndarray):
                assert loaded.dtype == expected.dtype


def test_numpy_numbers_and_strings_of_every_width(subtests):
    for kind in SCALARS:
        with subtests.test(kind=kind):
            check_kind_of_number(kind)


def test_configs():
    content = Config(dict(classes=('a', 'b'), palette=[[1, 2, 3]], deep=dict(x=dict())))
    loaded, expected = saved_and_loaded([content, content.deep, ConfigDict(y=1)])
    assert [part.to_dict() for part in loaded] == [p.to_dict() for p in expected]
    assert [type(part) for part in loaded] == [Config, ConfigDict, ConfigDict]
    assert loaded[0].deep.x == {} and type(loaded[0].deep.x) is ConfigDict


def test_message_hub_with_everything_that_metrics_and_hooks_put_there():
    hub = MessageHub.get_instance('safe types')
    for value in (1, 2.0, np.float32(3), torch.tensor(4.0)):
        hub.update_scalar('train/loss', value)
    hub.update_info('best_score', np.float64(0.5))
    hub.update_info('val/precisions', np.zeros((2, 3), np.float32))
    hub.update_info('dataset_meta', ConfigDict(classes=('a',), palette=[(1, 2, 3)]))
    loaded, expected = saved_and_loaded(hub.state_dict())
    assert repr(loaded['runtime_info']) == repr(expected['runtime_info'])
    history = loaded['log_scalars']['train/loss']
    assert history.data[0].tolist() == [1, 2, 3, 4] and history.mean() == 2.5


@pytest.mark.parametrize('name', ['OneCycleLR', 'CosineRestartLR'])
def test_run_resumes_with_its_schedule(tmp_path, name):
    arguments = {
        'OneCycleLR': dict(eta_max=0.1, total_steps=8),
        'CosineRestartLR': dict(periods=[3, 5], restart_weights=[1, 0.5], eta_min=0),
    }
    scheduler = dict(type=name, by_epoch=False, **arguments[name])

    def run(work_dir, **kwargs):
        runner = make_runner(
            work_dir,
            dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05)),
            images=16,
            batch_size=4,
            train_cfg=dict(
                type='LargeBatchTrainLoop', max_epochs=4, total_batch_size=8
            ),
            checkpoint=dict(type='CheckpointHook', interval=1),
            param_scheduler=[dict(scheduler)],
            **kwargs,
        )
        runner.train()
        return runner.model.state_dict()

    through = run(tmp_path)
    again = run(tmp_path, resume=True, load_from=str(tmp_path / 'epoch_2.pth'))
    assert all(torch.equal(through[key], again[key]) for key in through)


class Object:
    """Payload that calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class Scheduler(ParamScheduler):
    """Scheduler of a project with a method that is not static."""

    @staticmethod
    def shape(value):
        """Return the value."""
        return value

    def method(self):
        """Do nothing."""


def test_static_methods_of_schedulers_are_stored_and_not_called():
    allow_runner_checkpoints()  # Again, as a run does after custom_imports.
    loaded, expected = saved_and_loaded(dict(shape=Scheduler.shape))
    assert loaded == expected == dict(shape=Scheduler.shape)
    # A call of it by the file: pickle has no other way to write one.
    called = io.BytesIO()
    torch.save(Object(Scheduler.shape, 1), called)
    for content in (called, Object(getattr, Scheduler, 'method')):
        if content is not called:
            file = io.BytesIO()
            torch.save(content, file)
            content = file
        content.seek(0)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(content)


REFUSED = [
    Object(os.system, 'true'),
    Object(eval, '1'),
    Object(getattr, ParamScheduler, '__init__'),
    Object(getattr, Config, 'fromfile'),
    Object(Config.fromfile, 'x.py'),
    Object(getattr, np.ndarray, 'tofile'),
    Object(np.fromfile, 'x'),
    np.array([Path('x')], dtype=object),
    np.zeros(1, dtype=[('x', 'f4')]),
]


def test_anything_else_is_refused(subtests):
    for content in REFUSED:
        with subtests.test(content=content):
            file = io.BytesIO()
            torch.save(dict(meta=content), file)
            file.seek(0)
            with pytest.raises(pickle.UnpicklingError):
                torch.load(file)


PROJECT = """
import torch
class Note:
    pass
"""
ALLOWS = PROJECT + 'torch.serialization.add_safe_globals([Note])\n'


@pytest.mark.parametrize(
    ('project', 'variables', 'resumes'),
    [
        (PROJECT, {}, False),
        (ALLOWS, {}, True),
        (PROJECT, {'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1'}, True),
    ],
    ids=['refused', 'allowed by name', 'allowed by the variable'],
)
def test_documented_ways_to_resume_a_file_with_other_types(
    tmp_path, project, variables, resumes
):
    (tmp_path / 'project.py').write_text(project)
    script = """
        import sys
        from pathlib import Path
        from test_loading import runner
        import project
        work_dir = Path(sys.argv[1])
        first = runner(work_dir, epochs=1)
        first.message_hub.update_info('note', project.Note())
        first.train()
        later = runner(work_dir, epochs=2, resume=True)
        later.train()
        assert later.iter == 4
        """
    if not resumes and 'weights_only=False' in inspect.getsource(checkpoint):
        pytest.skip('this MMEngine loads anything')
    path = [str(tmp_path), *sys.path]
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(script), str(tmp_path / 'run')],
        check=False,
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(path), **variables),
    )
    assert (done.returncode == 0) is resumes, done.stderr
    if not resumes:
        assert 'add_safe_globals([project.Note])' in done.stderr
