"""Runs that a cluster stops or breaks, from the command line, on two gloo ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from scripts import ROOT
from test_rendezvous import free_port

from agvm_mm.training.loading import allow_runner_checkpoints

CONFIG = """
custom_imports = dict(imports=['agvm_mm', 'runners', 'faults'])
model = dict(type='ToyDetector')
train_dataloader = dict(
    dataset=dict(type='ImageDataset', images=40),
    sampler=dict(type='{sampler}', shuffle=True),
    batch_size=4, num_workers=1, collate_fn=dict(type='default_collate'))
optim_wrapper = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9), momentum=0.5)
train_cfg = {loop}
custom_hooks = [dict(type='VarianceSyncHook', interval=2), {fault}]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    preemption=dict(type='PreemptionHook'),
    checkpoint=dict(type='AtomicCheckpointHook', **{checkpoint}))
randomness = dict(seed=0)
"""
LOOPS = {
    'epochs': (
        dict(type='LargeBatchTrainLoop', max_epochs=3, total_batch_size=16),
        'DefaultSampler',
        dict(by_epoch=False, interval=2),
    ),
    'MMEngine': (
        dict(type='IterBasedTrainLoop', max_iters=9),
        'InfiniteSampler',
        dict(by_epoch=False, interval=4),
    ),
}
# Both act once: after that the work folder has their file.
FAULTS = """
import os
import signal
import time
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from agvm_mm import PreemptionHook


class Fault(Hook):
    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        file = Path(runner.work_dir, f'fault-{runner.rank}')
        if runner.iter == self.at and not file.exists():
            file.touch()
            self.act(runner)


@HOOKS.register_module(force=True)
class AwaitSignal(Fault):
    def act(self, runner):
        hook, = [hook for hook in runner.hooks if isinstance(hook, PreemptionHook)]
        while not hook._received:
            time.sleep(0.01)


@HOOKS.register_module(force=True)
class KillRank1(Fault):
    def act(self, runner):
        if runner.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def default_signals():
    """Let a child have the usual signals, also when this process ignores them."""
    for name in ('SIGINT', 'SIGQUIT', 'SIGTERM', 'SIGUSR1'):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


class Runs:
    """Runs of one config in a folder."""

    def __init__(self, folder: Path, loop: str):
        self.folder = folder
        self.loop = loop
        (folder / 'faults.py').write_text(FAULTS)

    def start(self, name: str, *arguments: str, fault='', ranks=2, **variables):
        """Start ranks in a new session."""
        config = self.folder / f'{name}.py'
        loop, sampler, checkpoint = LOOPS[self.loop]
        config.write_text(
            CONFIG.format(
                loop=loop,
                sampler=sampler,
                checkpoint=checkpoint,
                fault=fault,
            )
        )
        paths = [ROOT, ROOT / 'tests', self.folder, os.environ.get('PYTHONPATH', '')]
        environment = dict(
            os.environ,
            PYTHON=sys.executable,
            PYTHONPATH=os.pathsep.join(map(str, paths)),
            OMP_NUM_THREADS='1',
            CUDA_VISIBLE_DEVICES='',
            **variables,
        )
        command = [ROOT / 'tools/dist_train.sh', config, str(ranks)]
        return subprocess.Popen(
            [*command, '--work-dir', self.folder / name, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=default_signals,
        )

    def run(self, name: str, *arguments: str, **options) -> tuple[int, str]:
        """Run two ranks and return exit status and output."""
        process = self.start(name, *arguments, **options)
        output, _ = process.communicate(timeout=500)
        return process.returncode, output

    def await_files(self, process: subprocess.Popen, name: str, *files: str):
        """Wait until a run has written files."""
        while not all((self.folder / name / file).exists() for file in files):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)

    def final(self, name: str) -> dict:
        """Return the last checkpoint."""
        allow_runner_checkpoints()
        return torch.load((self.folder / name / 'last_checkpoint').read_text())

    def assert_same(self, one: str, other: str):
        """Assert that two runs have the same parameters, momenta and multipliers."""
        first, second = self.final(one), self.final(other)
        assert first['meta']['iter'] == second['meta']['iter'] == 9
        for name, value in first['state_dict'].items():
            assert torch.equal(value, second['state_dict'][name]), name
        momenta = [
            [state['momentum_buffer'] for state in run['optimizer']['state'].values()]
            for run in (first, second)
        ]
        assert all(map(torch.equal, *momenta))
        assert first['optimizer']['agvm'] == second['optimizer']['agvm']


@pytest.fixture(
    scope='module',
    params=['epochs', pytest.param('MMEngine', marks=pytest.mark.evidence)],
)
def runs(request, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return runs of a config, one of which was not interrupted."""
    made = Runs(tmp_path_factory.mktemp('runs'), request.param)
    status, output = made.run('through')
    assert status == 0, output
    return made


@pytest.mark.parametrize(
    'name', ['SIGTERM', pytest.param('SIGUSR1', marks=pytest.mark.evidence)]
)
def test_signal_to_the_launcher_stops_all_ranks(runs: Runs, name: str):
    process = runs.start(name, fault="dict(type='AwaitSignal', at=4)", MAX_RESTARTS='3')
    runs.await_files(process, name, 'fault-0', 'fault-1')
    process.send_signal(signal.Signals[name])
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 75, output
    path = (runs.folder / name / 'last_checkpoint').read_text()
    assert f'stopped by {name} after update 6, saved {path};' in output
    assert Path(path).name == 'preempted_iter_6.pth'
    assert 'Traceback' not in output

    status, output = runs.run(name, '--resume')
    assert status == 0, output
    assert f'{path}' in output
    runs.assert_same('through', name)


def test_killed_rank_is_restarted(runs: Runs):
    # At the start there is nothing to resume.
    status, output = runs.run(
        'killed', '--resume', fault="dict(type='KillRank1', at=5)", MAX_RESTARTS='2'
    )
    assert status == 0, output
    assert (runs.folder / 'killed/fault-1').exists()
    assert 'iter_4.pth' in output
    runs.assert_same('through', 'killed')


@pytest.mark.evidence
@pytest.mark.parametrize('runs', ['epochs'], indirect=True)
def test_killed_rank_of_two_nodes_is_restarted(runs: Runs):
    name, fault = 'two nodes', "dict(type='KillRank1', at=5)"
    settings = dict(NNODES='2', PORT=str(free_port()), MAX_RESTARTS='2', ranks=1)
    nodes = [
        runs.start(name, '--resume', fault=fault, NODE_RANK=str(node), **settings)
        for node in range(2)
    ]
    outputs = [node.communicate(timeout=500)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert (runs.folder / name / 'fault-1').exists()
    runs.assert_same('through', name)


def test_killed_rank_without_restarts_is_a_failure(tmp_path: Path):
    runs = Runs(tmp_path, 'epochs')
    status, output = runs.run('killed', fault="dict(type='KillRank1', at=1)")
    assert status == 1
    assert 'SIGKILL' in output or '-9' in output
