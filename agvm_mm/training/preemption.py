"""Hook that stops a training on a signal, with a checkpoint that resumes exactly."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from bisect import bisect
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import distributed as dist
from torch.utils.data import DataLoader

from agvm_mm import engine
from agvm_mm.training.atomic import AtomicCheckpointHook
from agvm_mm.training.loops import LargeBatchIterTrainLoop, LargeBatchTrainLoop
from agvm_mm.validation import check_choice, suggests_arguments

PREEMPTED = os.EX_TEMPFAIL
"""Exit status of a run that stopped on a signal and saved a checkpoint: 75.

128 + signal would also be that of a run that was killed and saved nothing.
"""

SIGNALS = ('SIGTERM', 'SIGUSR1', 'SIGUSR2', 'SIGHUP', 'SIGINT', 'SIGXCPU')
"""Names of the signals that the hook can handle."""

ECHO = 5
"""Seconds in which further signals count as the first one.

torchrun and srun pass on a signal that a scheduler sends to the ranks as well.
"""

CHECKPOINT_NAME = 'preempted_iter_{}.pth'
# In the message hub, which is part of a checkpoint.
LAST_PREEMPTED = 'agvm_preempted_checkpoint'
VALIDATION_DUE = 'agvm_validation_due_at'


class Preempted(SystemExit):
    """End of a run that stopped on a signal, with all that it did in a checkpoint."""


class LateMaximum:
    """Largest number of all ranks, without waiting for ranks or a device.

    Each call of ``exchange`` hands over a number and returns the maximum of the numbers
    of the call before, the same on all ranks. A thread of gloo reduces them in between.
    No rank is more than one call ahead of another, so all stop at the same one.
    """

    def __init__(self) -> None:
        self._number = torch.zeros((), dtype=torch.int64)
        self._work = None
        several = get_world_size() > 1
        self._group = dist.new_group(backend='gloo') if several else None

    def exchange(self, number: int) -> int:
        """Return the maximum of the last call; if it is 0, hand over a number."""
        if self._group is None:
            return number
        latest = self.collect()
        if not latest:
            self._number.fill_(number)
            self._work = dist.all_reduce(
                self._number, dist.ReduceOp.MAX, group=self._group, async_op=True
            )
        return latest

    def collect(self) -> int:
        """Return the maximum of the numbers that were handed over, 0 without any."""
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._number)

    def close(self) -> None:
        """Disconnect the ranks when all of them have called this."""
        if self._group is not None:
            self.collect()
            dist.barrier(group=self._group)
            dist.destroy_process_group(self._group)
            self._group = None


def start_worker(signals: Sequence[int], init: Callable | None, worker: int) -> None:
    """Start a worker of a dataloader that outlives a signal to its rank.

    Schedulers and torchrun signal the workers of a rank as well. ``init`` is the
    ``worker_init_fn`` of the dataloader.
    """
    for number in signals:
        if number == signal.SIGTERM:
            signal.pthread_sigmask(signal.SIG_BLOCK, [number])
            threading.Thread(target=await_sigterm_of_rank, daemon=True).start()
        else:
            signal.signal(number, signal.SIG_IGN)
    if init is not None:
        init(worker)


def await_sigterm_of_rank() -> None:
    """End this worker when its own rank, which never asks twice, terminates it."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


def is_protected(dataloader: DataLoader) -> bool:
    """Return whether workers that a dataloader starts survive signals."""
    return getattr(dataloader.worker_init_fn, 'func', None) is start_worker


def protect_workers(dataloader: DataLoader, signals: Sequence[int]) -> None:
    """Make workers that a dataloader starts from now on survive signals."""
    if not is_protected(dataloader):
        init = dataloader.worker_init_fn
        dataloader.worker_init_fn = partial(start_worker, signals, init)


def die_of(number: int) -> None:
    """End this process by a signal, as without a handler."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def end_before_training(number: int) -> None:
    """Handle a signal before the training, when there is nothing to save."""
    print_log(
        f'stopped by {signal.Signals(number).name} before the training, with nothing '
        f'to save. Exit status {PREEMPTED}',
        logger='current',
        level=logging.WARNING,
    )
    raise Preempted(PREEMPTED)


def end_at_once(signals: Sequence[int], status: int) -> None:
    """From now on end this process on these signals and SIGTERM with a status."""
    for number in {signal.SIGTERM, *signals}:
        signal.signal(number, lambda *_: os._exit(status))


@HOOKS.register_module()
@suggests_arguments()
class PreemptionHook(Hook):
    """Hook that stops a training on a signal, as at the end of a Slurm allocation.

    All ranks finish the same update, at most two after the first of them received a
    signal. The run saves ``preempted_iter_<updates>.pth`` with the settings of the
    checkpoint hook, from which ``--resume`` continues to the last bit, and ends with
    status 75. MMEngine's epoch-based loop cannot resume within an epoch: there the run
    stops after the epoch. A second signal, more than 5 seconds after the first one,
    ends the process at once.

    Args:
        signals: Names of signals; none to ignore them all. Defaults to SIGTERM and
            SIGUSR1.

    Raises:
        ValueError: If a name is not one of :data:`SIGNALS`.

    Example:
        >>> default_hooks = dict(
        ...     preemption=dict(type='PreemptionHook', signals=['SIGUSR1'])
        ... )
    """

    # Last, when all other hooks have seen the update.
    priority = 'LOWEST'

    def __init__(self, *, signals: Sequence[str] = ('SIGTERM', 'SIGUSR1')) -> None:
        for name in signals:
            check_choice('signals', name, SIGNALS)
        self.signals = [signal.Signals[name] for name in signals]
        self._active = False
        self._previous: dict[int, object] = {}
        self._received, self._received_at = 0, 0.0
        self._agreed = 0

    def handle(self, handler: Callable[[int], None]) -> None:
        """Set the handler of all signals; a forked child ends on SIGTERM only."""
        process = os.getpid()

        def receive(number: int, _: FrameType | None) -> None:
            if os.getpid() == process:
                handler(number)
            elif number == signal.SIGTERM:  # By which its parent ends it.
                die_of(number)

        for number in self.signals:
            # An earlier training of this hook that failed may have left it.
            self._previous.setdefault(number, signal.getsignal(number))
            signal.signal(number, receive)

    def before_train(self, runner: Runner) -> None:
        """Begin to handle the signals."""
        known = EpochBasedTrainLoop | IterBasedTrainLoop
        self._active = bool(self.signals) and isinstance(runner.train_loop, known)
        if not self._active:
            self.restore_handlers()
            return
        self._received = self._agreed = 0
        self._ranks = LateMaximum()
        self._protect_workers(runner)
        self.handle(self._receive)

    def before_train_epoch(self, runner: Runner) -> None:
        """Validate if the run that this one resumes stopped just before that."""
        due = runner.message_hub.runtime_info.get(VALIDATION_DUE)
        if due == runner.iter and runner.val_loop is not None:
            runner.val_loop.run()
        self._hold_signals(runner.train_dataloader)

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Receive signals again, as the workers have started."""
        if self._active:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)

    def before_val_epoch(self, runner: Runner) -> None:
        """Hold signals back until the workers have started."""
        self._hold_signals(runner.val_dataloader)

    before_val_iter = before_train_iter

    def after_val_epoch(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Hold signals back: the next update may start workers."""
        self._hold_signals(runner.train_dataloader)

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        """Raise :class:`Preempted` after this update if a rank received a signal."""
        if not self._active:
            return
        loop, update = runner.train_loop, runner.iter + 1
        within_epoch = isinstance(loop, LargeBatchTrainLoop | IterBasedTrainLoop)
        if not self._agreed:
            self._agreed = self._ranks.exchange(self._received)
            if self._agreed:
                unit = 'update' if within_epoch else 'epoch'
                runner.logger.warning(
                    f'received {signal.Signals(self._agreed).name}: the run stops '
                    f'after the next {unit} from which {type(loop).__name__} can resume'
                )
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        if (
            self._agreed
            and within_epoch
            and engine.is_between_updates(runner.optim_wrapper)
            and not self.is_last_train_iter(runner)
            # A resume after the epoch does not load its images again.
            and not (by_epoch and self.end_of_epoch(runner.train_dataloader, batch_idx))
        ):
            due = not by_epoch and validates_after(loop, update)
            self._stop(runner, runner.epoch, update, due)
        if isinstance(loop, LargeBatchIterTrainLoop):
            # The next update may begin a pass over the data, with new workers.
            self._hold_signals(runner.train_dataloader)

    def after_train_epoch(self, runner: Runner) -> None:
        """Raise :class:`Preempted` after this epoch if a rank received a signal."""
        loop = runner.train_loop
        if not self._active or isinstance(loop, IterBasedTrainLoop):
            return
        self._agreed = (
            self._agreed
            or self._ranks.exchange(self._received)
            or self._ranks.collect()  # Of this very call: it may be long to the next.
        )
        if self._agreed and not self.is_last_train_epoch(runner):
            epoch = runner.epoch + 1
            self._stop(runner, epoch, runner.iter, validates_after(loop, epoch))

    def after_train(self, runner: Runner) -> None:
        """Handle signals as before the training."""
        if self._active:
            self._ranks.close()
            self.restore_handlers()

    def restore_handlers(self) -> None:
        """Handle signals as before the training; a failed one needs this call."""
        self._active = False
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)
        while self._previous:
            number, handler = self._previous.popitem()
            # None stands for a handler that was not set by Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _hold_signals(self, dataloader: DataLoader) -> None:
        # A worker inherits it, or would die before :func:`start_worker`.
        if self._active and dataloader.num_workers:
            context = dataloader.multiprocessing_context or multiprocessing
            if context.get_start_method() != 'fork':
                # The first such worker starts it, which would let SIGTERM in.
                resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)

    def _protect_workers(self, runner: Runner) -> None:
        loop = runner.train_loop
        if (
            isinstance(loop, IterBasedTrainLoop)
            and not isinstance(loop, LargeBatchIterTrainLoop)
            and loop.dataloader.num_workers
            and not is_protected(loop.dataloader)
        ):
            runner.logger.warning(
                'PreemptionHook: the workers of this loop started before the hook; '
                'signals that reach them as well end the run without a checkpoint. '
                "Train with agvm_mm's tools/train.py, or use LargeBatchIterTrainLoop"
            )
        else:
            protect_workers(loop.dataloader, self.signals)
        if runner.val_loop is not None:
            protect_workers(runner.val_loop.dataloader, self.signals)

    def _receive(self, number: int) -> None:
        """Note a signal; end this process on a second one."""
        now = time.monotonic()
        if not self._received:
            self._received, self._received_at = number, now
        elif now - self._received_at > ECHO:
            die_of(number)

    def _stop(self, runner: Runner, epoch: int, update: int, due: bool) -> None:
        """Save a checkpoint, remove that of an earlier stop, and end the run.

        ``due`` is whether the loop would validate now.
        """
        hub, name = runner.message_hub, CHECKPOINT_NAME.format(update)
        hub.update_info(VALIDATION_DUE, update if due else None)
        outdated = hub.runtime_info.get(LAST_PREEMPTED, name)
        hub.update_info(LAST_PREEMPTED, name)
        hook = next((h for h in runner.hooks if isinstance(h, CheckpointHook)), None)
        if hook is None:
            hook = AtomicCheckpointHook()
            hook.before_train(runner)
        meta = dict(epoch=epoch, iter=update)
        path = engine.save_extra(hook, runner, CHECKPOINT_NAME, update, meta)
        if outdated != name and is_main_process():
            outdated = hook.file_backend.join_path(hook.out_dir, outdated)
            if hook.file_backend.isfile(outdated):
                hook.file_backend.remove(outdated)
        runner.logger.warning(
            f'stopped by {signal.Signals(self._agreed).name} after update {update}, '
            f'saved {path}; --resume continues from there. Exit status {PREEMPTED}'
        )
        runner.visualizer.close()
        # A launcher may kill the other ranks as soon as one ends, so it waits for them.
        self.after_train(runner)
        raise Preempted(PREEMPTED)


def validates_after(loop: EpochBasedTrainLoop | IterBasedTrainLoop, done: int) -> bool:
    """Return whether a loop validates after a number of epochs or iterations."""
    position = bisect(loop.dynamic_milestones, done + 1) - 1
    return done >= loop.val_begin and done % loop.dynamic_intervals[position] == 0
