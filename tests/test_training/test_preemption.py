"""A run that stops on a signal saves a checkpoint, and the resumed run is the same."""

import multiprocessing
import os
import signal
import subprocess
import time
from functools import partial
from multiprocessing import resource_tracker, util
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS
from mmengine.runner import Runner
from ranks import run_on_ranks
from runners import make_runner
from test_resume import AugmentedDataset, NoisyDetector, assert_same, read

from agvm_mm import cli
from agvm_mm.training import preemption
from agvm_mm.training.loading import allow_runner_checkpoints
from agvm_mm.training.preemption import Preempted, PreemptionHook, protect_workers

assert AugmentedDataset and NoisyDetector  # They are registered.


@HOOKS.register_module(force=True)
class SignalHook(Hook):
    """Hook that sends this process a signal in an update."""

    def __init__(self, at: int, number: int = signal.SIGTERM, rank: int = 0):
        self.at, self.number, self.rank = at, number, rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at and runner.rank == self.rank:
            os.kill(os.getpid(), self.number)


@HOOKS.register_module(force=True)
class SlowRankHook(Hook):
    """Hook that makes a rank late at each update."""

    def __init__(self, rank: int):
        self.rank = rank

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.rank == self.rank:
            time.sleep(0.05)


@METRICS.register_module(force=True)
class CountingMetric(BaseMetric):
    """Metric that records at which update it was computed."""

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return dict(images=len(results))


class Validated(Hook):
    """Hook that lists the updates after which the run was validated."""

    def __init__(self):
        self.updates = []

    def after_val_epoch(self, runner, metrics=None):
        assert metrics['images']
        self.updates.append(runner.iter)


SAMPLER = dict(sampler='InfiniteSampler')
LOOPS = {
    'epochs': (
        dict(type='LargeBatchTrainLoop', max_epochs=3, total_batch_size=16),
        dict(by_epoch=True, interval=1),
        dict(),
    ),
    'updates': (
        dict(type='LargeBatchIterTrainLoop', max_iters=9, total_batch_size=16),
        dict(by_epoch=False, interval=100),
        SAMPLER,
    ),
    'MMEngine': (
        dict(type='IterBasedTrainLoop', max_iters=9),
        dict(by_epoch=False, interval=100, save_optimizer=False),
        SAMPLER | dict(model='ToyDetector', dataset='ImageDataset'),
    ),
    'accumulation': (
        dict(type='IterBasedTrainLoop', max_iters=9),
        dict(by_epoch=False, interval=100),
        SAMPLER | dict(model='ToyDetector', dataset='ImageDataset'),
    ),
    'whole epochs': (
        dict(type='EpochBasedTrainLoop', max_epochs=3),
        dict(by_epoch=True, interval=1),
        dict(model='ToyDetector', dataset='ImageDataset'),
    ),
}


def build(work_dir, loop, *, hooks=(), checkpoint=None, **changes):
    """Build a runner of 9 updates (or of 3 epochs of 10) with all that has a state."""
    allow_runner_checkpoints()
    train_cfg, settings, options = LOOPS[loop]
    wrapper = dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9)
    )
    if loop == 'accumulation':
        wrapper['accumulative_counts'] = 3
    arguments = dict(
        images=40,
        batch_size=4,
        train_cfg=train_cfg,
        checkpoint=checkpoint or dict(type='AtomicCheckpointHook', **settings),
        hooks=[dict(type='EMAHook', momentum=0.1), *hooks],
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5)
        ],
        optim_wrapper=wrapper,
        model='NoisyDetector',
        dataset='AugmentedDataset',
    )
    return make_runner(Path(work_dir), **{**arguments, **options, **changes})


def preempt(runner):
    """Train until the run stops on a signal, and return its checkpoint."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(Preempted) as stop:
        runner.train()
    assert stop.value.code == 75
    after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    assert after == before
    return Path(runner.work_dir, 'last_checkpoint').read_text()


def compare_runs(through, broken):
    """Assert that the last checkpoints of two runs have the same content."""
    expected, found = read(through)[0], read(broken)[0]
    assert found['meta']['iter'] == expected['meta']['iter']
    assert found['meta']['epoch'] == expected['meta']['epoch']
    parts = {'state_dict', 'optimizer', 'param_schedulers', 'ema_state_dict'}
    for part in parts & set(expected):
        assert_same(expected[part], found[part], part)


# One update of 'epochs' is the last one of its epoch.
@pytest.mark.parametrize(
    'loop, at, stops',
    [
        ('epochs', 1, 2),
        ('epochs', 2, 3),
        ('epochs', 4, 5),
        ('updates', 4, 5),
        ('MMEngine', 4, 5),
        ('accumulation', 3, 6),
        ('whole epochs', 4, 10),
    ],
)
def test_stopped_and_resumed_run_is_bit_identical(tmp_path, loop, at, stops):
    build(tmp_path / 'through', loop).train()
    broken = tmp_path / f'broken {loop} {at}'  # Loggers are known by this name.
    hooks = [dict(type='PreemptionHook'), dict(type='SignalHook', at=at)]
    path = preempt(build(broken, loop, hooks=hooks))
    assert path == f'{broken}/preempted_iter_{stops}.pth'
    assert torch.load(path)['meta']['iter'] == stops
    (log,) = broken.glob('*/*.log')
    assert f'stopped by SIGTERM after update {stops}, saved {path};' in log.read_text()
    build(broken, loop, hooks=hooks[:1], resume=True).train()
    compare_runs(tmp_path / 'through', broken)


def test_checkpoint_has_the_settings_of_the_hook(tmp_path):
    checkpoint = dict(
        type='AtomicCheckpointHook',
        by_epoch=False,
        interval=1,
        max_keep_ckpts=2,
        out_dir=str(tmp_path / 'elsewhere'),
    )
    folder = tmp_path / 'elsewhere/run'
    options = dict(checkpoint=checkpoint, resume=True)
    for at in (3, 6):
        hooks = [dict(type='PreemptionHook'), dict(type='SignalHook', at=at)]
        runner = build(tmp_path / 'run', 'epochs', hooks=hooks, **options)
        assert preempt(runner) == f'{folder}/preempted_iter_{at + 1}.pth'
        # That of an earlier stop is removed, and the others are kept as without it.
        assert {path.name for path in folder.iterdir()} == {
            f'iter_{at}.pth',
            f'iter_{at + 1}.pth',
            f'preempted_iter_{at + 1}.pth',
        }
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_run_without_checkpoint_hook_saves_as_well(tmp_path):
    hooks = [dict(type='PreemptionHook'), dict(type='SignalHook', at=1)]
    runner = build(tmp_path, 'epochs', hooks=hooks)
    runner._hooks = [h for h in runner.hooks if 'Checkpoint' not in type(h).__name__]
    assert preempt(runner) == f'{tmp_path}/preempted_iter_2.pth'
    assert torch.load(tmp_path / 'preempted_iter_2.pth')['optimizer']


@pytest.mark.parametrize('loop, at', [('epochs', 8), ('updates', 8)])
def test_signal_in_the_last_update_lets_the_run_end(tmp_path, loop, at):
    hooks = [dict(type='PreemptionHook'), dict(type='SignalHook', at=at)]
    runner = build(tmp_path, loop, hooks=hooks)
    runner.train()
    assert runner.iter == 9
    assert not list(tmp_path.glob('preempted*'))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


VALIDATION = dict(
    val_cfg=dict(),
    val_evaluator=dict(type='CountingMetric'),
    val_dataloader=dict(
        dataset=dict(type='ImageDataset', images=4),
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=2,
        num_workers=0,
        collate_fn=dict(type='default_collate'),
    ),
)


@pytest.mark.parametrize(
    'loop, at, interval, expected',
    [
        ('epochs', 2, 1, [3, 6, 9]),
        ('updates', 3, 4, [4, 8, 9]),
        ('updates', 4, 4, [4, 8, 9]),
        ('whole epochs', 4, 1, [10, 20, 30]),
    ],
)
def test_validation_that_was_due_is_done_after_resuming(
    tmp_path, monkeypatch, loop, at, interval, expected
):
    monkeypatch.setattr(NoisyDetector, 'val_step', predict_nothing, raising=False)
    monkeypatch.setattr(
        NoisyDetector.__base__, 'val_step', predict_nothing, raising=False
    )
    updates = []
    for resume in (False, True):
        hooks = [dict(type='PreemptionHook')]
        if not resume:
            hooks.append(dict(type='SignalHook', at=at))
        cfg = dict(LOOPS[loop][0], val_interval=interval)
        runner = build(
            tmp_path, loop, hooks=hooks, resume=resume, train_cfg=cfg, **VALIDATION
        )
        validated = Validated()
        runner.register_hook(validated)
        runner.train() if resume else preempt(runner)
        updates += validated.updates
    assert updates == expected


def test_validation_that_was_due_is_not_done_later(tmp_path, monkeypatch):
    monkeypatch.setattr(NoisyDetector, 'val_step', predict_nothing, raising=False)
    cfg = dict(LOOPS['updates'][0], val_interval=4)
    hooks = [dict(type='PreemptionHook'), dict(type='SignalHook', at=3)]
    preempt(build(tmp_path, 'updates', hooks=hooks, train_cfg=cfg, **VALIDATION))
    # Without the hook the run goes on.
    shorter = cfg | dict(max_iters=6)
    resumed = dict(resume=True, **VALIDATION)
    build(tmp_path, 'updates', train_cfg=shorter, **resumed).train()
    runner = build(tmp_path, 'updates', hooks=hooks[:1], train_cfg=cfg, **resumed)
    validated = Validated()
    runner.register_hook(validated)
    runner.train()
    assert validated.updates == [8, 9]


def predict_nothing(self, data):
    return [None] * 2


# ---------------------------------------------------------------------- ranks


@pytest.mark.parametrize('slow', [0, 1])
@pytest.mark.parametrize('loop, stops', [('epochs', 5), ('updates', 5)])
def test_all_ranks_stop_after_the_same_update(tmp_path, loop, stops, slow):
    """Only rank 1 gets the signal, and either rank is late."""
    through, broken = str(tmp_path / 'through'), str(tmp_path / 'broken')
    run_on_ranks(train_rank, 2, through, loop, [])
    hooks = [
        dict(type='PreemptionHook'),
        dict(type='SignalHook', at=3, number=signal.SIGUSR1, rank=1),
        dict(type='SlowRankHook', rank=slow),
    ]
    ends = run_on_ranks(train_rank, 2, broken, loop, hooks)
    assert ends == [(75, stops), (75, stops)]
    run_on_ranks(train_rank, 2, broken, loop, hooks[:1], True)
    compare_runs(tmp_path / 'through', tmp_path / 'broken')
    logs = ''.join(path.read_text() for path in (tmp_path / 'broken').glob('*/*.log'))
    assert 'received SIGUSR1: the run stops' in logs


def train_rank(work_dir, loop, hooks, resume=False):
    """Train on this rank and return the exit status and the number of updates."""
    runner = build(
        work_dir,
        loop,
        hooks=hooks,
        resume=resume,
        launcher='pytorch',
        cfg=dict(
            model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)
        ),
    )
    try:
        runner.train()
    except Preempted as stop:
        hub = runner.message_hub
        return stop.code, int(hub.get_info('last_ckpt').split('_')[-1][:-4])
    return 0, runner.iter


def test_ranks_wait_for_each_other_on_the_host_only():
    """A number that is handed over comes back one call later, and no sooner."""
    assert run_on_ranks(exchange_numbers, 2) == [[0, 0, 11], [0, 0, 11]]


def exchange_numbers():
    rank, ranks = dist.get_rank(), preemption.LateMaximum()
    found = [ranks.exchange(0)]
    found += [ranks.exchange(10 + rank if rank else 0), ranks.exchange(0)]
    ranks.close()
    return found


# -------------------------------------------------------------------- handlers


class Interrupt(Hook):
    """Hook that calls a function in an update, or before the training (None)."""

    def __init__(self, at, function):
        self.at, self.function = at, function

    def before_run(self, runner):
        if self.at is None:
            self.function()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            self.function()


def run_child(function):
    """Run a function in a forked child and return its exit status."""
    child = os.fork()
    if not child:
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            function()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def signal_self(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def train_with(work_dir, function, train=Runner.train, at=2, **settings):
    hook = dict(type='PreemptionHook', **settings)
    runner = build(work_dir, 'epochs', hooks=[hook])
    runner.register_hook(Interrupt(at, function))
    train(runner)


def test_second_signal_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(preemption, 'ECHO', -1)
    status = run_child(
        lambda: train_with(
            tmp_path, lambda: signal_self(signal.SIGUSR1, signal.SIGTERM)
        )
    )
    assert status == -signal.SIGTERM
    assert not list(tmp_path.glob('preempted*'))


def test_signal_that_is_passed_on_does_not_count_as_second(tmp_path):
    with pytest.raises(Preempted):
        train_with(tmp_path, lambda: signal_self(signal.SIGTERM, signal.SIGTERM))

    def preempted_by_usr1(folder, at, signals):
        try:
            train_with(
                folder,
                lambda: signal_self(signal.SIGUSR1),
                cli.train,
                at=at,
                signals=signals,
            )
        except Preempted:  # srun terminates this rank, as another one has ended.
            signal_self(signal.SIGTERM)

    for at in (None, 2):  # Before the training, in an update.
        for signals in (['SIGUSR1'], ['SIGUSR1', 'SIGTERM']):
            folder = tmp_path / f'{at} {len(signals)}'
            run = partial(preempted_by_usr1, folder, at, signals)
            assert run_child(run) == 75
            assert bool(list(folder.glob('preempted*'))) == bool(at)


def fail():
    raise FloatingPointError('a failure')


@pytest.fixture
def seen():
    """Handle SIGUSR1 in a way of our own; return what was received."""
    received = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: received.append('before'))
    yield received
    signal.signal(signal.SIGUSR1, previous)


def test_signal_after_a_failed_training_acts_as_before(tmp_path, seen):
    for name in ('one', 'two'):
        with pytest.raises(FloatingPointError):
            train_with(tmp_path / name, fail, train=cli.train)
        signal_self(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert seen == ['before'] * 2


def test_hook_trains_again_after_a_failure(tmp_path, seen):
    runner = build(tmp_path, 'epochs', hooks=[dict(type='PreemptionHook')])
    failure = Interrupt(2, fail)
    runner.register_hook(failure)
    with pytest.raises(FloatingPointError):
        runner.train()
    failure.at = -1
    runner.train()
    signal_self(signal.SIGUSR1)
    assert seen == ['before']


def test_forked_children_end_on_sigterm_only(tmp_path):
    def child():
        signal_self(signal.SIGUSR1, signal.SIGTERM)

    statuses = []

    def fork():
        process = os.fork()
        if not process:
            child()
            os._exit(99)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))

    for at in (None, 2):
        train_with(tmp_path / str(at), fork, cli.train, at=at)
    assert statuses == [-signal.SIGTERM] * 2


def test_no_signals_no_handlers(tmp_path):
    handlers = []
    runner = build(tmp_path, 'epochs', hooks=[dict(type='PreemptionHook', signals=[])])
    runner.register_hook(
        Interrupt(2, lambda: handlers.append(signal.getsignal(signal.SIGTERM)))
    )
    runner.train()
    assert handlers == [signal.SIG_DFL]


def test_unknown_signal_is_an_error():
    with pytest.raises(ValueError, match="'SIGUSR1', .* got 'USR1'"):
        PreemptionHook(signals=['USR1'])


# --------------------------------------------------------------------- workers


def children():
    """Return the process IDs of all children of this process."""
    return Path(f'/proc/self/task/{os.getpid()}/children').read_text().split()


def signal_children(others):
    """Have another process send signals to children of this one but for some."""
    found = [
        child
        for child in children()
        if child not in others
        and b'resource_tracker' not in Path(f'/proc/{child}/cmdline').read_bytes()
    ]
    assert found
    for name in ('USR1', 'TERM'):
        subprocess.run(['kill', f'-{name}', *found], check=True)
    time.sleep(0.2)  # A signal reports a worker that dies.


class Slow:
    """While there is one, a new process sleeps before it does anything else."""

    def __init__(self):
        util.register_after_fork(self, lambda _: time.sleep(0.5))


@pytest.mark.parametrize('loop', ['epochs', 'updates'])
def test_workers_survive_a_signal_to_all_processes(tmp_path, loop):
    # Earlier tests of this process may have left workers, which are not protected.
    others = children()

    def stop():
        signal_children(others)
        signal_self(signal.SIGTERM)

    # At 0 and 3 workers have been forked that are not set up yet.
    slow = Slow()
    for at in (0, 2, 3):
        runner = build(
            tmp_path / str(at),
            loop,
            hooks=[dict(type='PreemptionHook')],
            num_workers=2,
            sampler='DefaultSampler',
        )
        runner.register_hook(Interrupt(at, stop))
        preempt(runner)
    del slow


def test_rank_ends_its_workers():
    loader = torch.utils.data.DataLoader([0], num_workers=1)
    protect_workers(loader, [signal.SIGTERM, signal.SIGUSR1])
    ready = multiprocessing.Event()
    arguments = [loader.worker_init_fn, ready]
    worker = multiprocessing.Process(target=sleep_in_worker, args=arguments)
    worker.start()
    assert ready.wait(60)
    os.kill(worker.pid, signal.SIGUSR1)
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


def sleep_in_worker(init, ready):
    init(0)
    ready.set()
    time.sleep(600)


def test_protected_workers_are_set_up_as_before():
    started = []
    loader = torch.utils.data.DataLoader([0], worker_init_fn=started.append)
    protect_workers(loader, [])
    protect_workers(loader, [])
    loader.worker_init_fn(7)
    assert started == [7]

    def hold_while_spawning():
        resource_tracker._resource_tracker._fd = None  # As in a new process.
        loader = torch.utils.data.DataLoader(
            [0], num_workers=1, multiprocessing_context='spawn'
        )
        hook = PreemptionHook()
        hook._active = True
        hook._hold_signals(loader)
        multiprocessing.get_context('spawn').Lock()  # As its queues, it has a tracker.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        os._exit(0 if held >= {signal.SIGTERM, signal.SIGUSR1} else 1)

    assert run_child(hold_while_spawning) == 0


def test_workers_that_started_before_the_hook_are_reported(tmp_path):
    runner = build(
        tmp_path, 'MMEngine', hooks=[dict(type='PreemptionHook')], num_workers=1
    )
    runner.train()
    (log,) = tmp_path.glob('*/*.log')
    assert 'workers of this loop started before the hook' in log.read_text()
