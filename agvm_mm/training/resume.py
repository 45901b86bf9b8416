"""Checks of the checkpoint that a run resumes."""

import copy
import logging
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner, find_latest_checkpoint

from agvm_mm.compat import library_versions
from agvm_mm.engine import (
    ParamScheduler,
    accumulative_counts,
    checkpoint_to_resume,
    is_resuming,
)
from agvm_mm.sharding.model import check_gathers
from agvm_mm.sharding.state import is_divided
from agvm_mm.training.batch import batch_size_of, counts_updates
from agvm_mm.training.dataloader import PLACE
from agvm_mm.training.loading import (
    allow_runner_checkpoints,
    missing_parts,
    read_outline,
)
from agvm_mm.training.warmup import follows_metric, step_schedules
from agvm_mm.validation import check_flag

STORED = {
    'images of an update': 'agvm_total_batch_size',
    'images of an iteration': 'agvm_images_of_iteration',
}
"""Keys in the message hub, which is part of a checkpoint, by what they hold."""
LAST_UPDATE = 'agvm_last_update'
"""Key of the number of iterations up to which the hub is that of this package."""
VERSIONS = 'agvm_versions'
"""Key of the versions of the libraries there."""


def path_and_folders(runner: Runner) -> tuple[str | None, list[Path]]:
    """Return the checkpoint to resume, '' or None if unknown, and where others are."""
    path = checkpoint_to_resume(runner) or find_latest_checkpoint(runner.work_dir)
    folders = [Path(runner.work_dir)]
    if path and '://' not in path:
        folders.append(Path(path).expanduser().parent)
    return path, folders


class ResumeHook(Hook):
    """Hook that checks the checkpoint that a run resumes.

    Large-batch loops, ``VarianceSyncHook`` and ``AtomicCheckpointHook`` share the one
    that :func:`resume_hook` registers.

    Attributes:
        allow_mismatch: Whether to resume a checkpoint of another training, or without
            the state of the optimizer or its schedules.
        compares: Whether the checkpoint must be complete and of the same training;
            otherwise it must only be readable, as MMEngine has it.
        replays: Whether schedules have to be advanced to the update of the run.
    """

    # After the hooks that register it when the run begins.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self.allow_mismatch = False
        self.compares = False
        self.replays = False
        self._fresh: list[dict] = []

    def before_run(self, runner: Runner) -> None:
        """Check that the runner can read the checkpoint that it is about to resume.

        Raises:
            RuntimeError: If the file is missing, truncated or corrupt, or the work
                folder does not say which one is the latest; the message names the
                newest one that can be resumed.
        """
        allow_runner_checkpoints()
        if not is_resuming(runner):
            return
        # A runner that evaluates has none, or configs.
        schedulers = runner.param_schedulers or ()
        built = [each for each in schedulers if isinstance(each, ParamScheduler)]
        self._fresh = [copy.deepcopy(each.state_dict()) for each in built]
        path, folders = path_and_folders(runner)
        pointer = folders[0] / 'last_checkpoint'
        if path is None:
            if newest_resumable(folders) is None:
                return  # The first start of a run that always has `resume`.
            problem = f'there is no {pointer}, which names the checkpoint'
        elif not path:
            problem = f'{pointer}, which names the checkpoint, is empty'
        elif '://' in path or is_whole(Path(path).expanduser()):
            return
        else:
            problem = f'{path} does not exist'
            if Path(path).expanduser().is_file():
                problem = f'{path} is truncated or corrupt'
            problem += '' if checkpoint_to_resume(runner) else f' ({pointer} names it)'
        raise RuntimeError(
            f'cannot resume the training: {problem}; {advise(folders, len(built))}'
        )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check that a checkpoint to resume has all that the run continues.

        Raises:
            ValueError: If it lacks state, without which the run would start over, or
                has averages in place of its weights.
        """
        # A runner that only evaluates has a config there.
        trains = isinstance(runner.optim_wrapper, BaseOptimWrapper)
        if not (self.compares and trains and is_resuming(runner)):
            return
        averages = any(isinstance(hook, EMAHook) for hook in runner.hooks)
        if 'ema_state_dict' in checkpoint and not averages:
            self.allow(
                'resuming from averages of EMAHook in place of the weights',
                refusal='the weights of the checkpoint are averages of EMAHook, which '
                'this run does not have.',
            )
        schedulers = len(self._fresh)
        missing = missing_parts(checkpoint, schedulers=schedulers)
        if missing:
            path, folders = path_and_folders(runner)
            problem = f'the checkpoint to resume, {path}, lacks {", ".join(missing)}'
            advice = advise(folders, schedulers)
            if not {'optimizer', 'param_schedulers'}.issuperset(missing):
                raise ValueError(
                    f'{problem}: it has weights to start from with load_from '
                    f'(resume=False), not the state of a training; {advice}'
                )
            self.allow(
                f'{problem}; resuming it without',
                refusal=f'{problem}, which would start over; {advice}.',
            )
            self.replays = True
        find_place(runner, checkpoint)

    def compare(self, saved: Mapping, now: Mapping, names: Iterable[str]) -> set[str]:
        """Compare settings of a checkpoint with those of this run by their names.

        Those that either lacks are left out. Return the names of those that differ.

        Raises:
            ValueError: If there are some, unless mismatches are allowed.
        """
        differences = {
            name: f'{name}: {saved[name]} in the checkpoint, {now[name]} in this run'
            for name in names
            if name in saved and name in now and saved[name] != now[name]
        }
        if differences:
            listed = '; '.join(differences.values())
            self.allow(
                f'AGVM: resuming a checkpoint of another training ({listed})',
                refusal=f'the checkpoint belongs to another training ({listed}).',
            )
        return set(differences)

    def allow(self, warning: str, *, refusal: str) -> None:
        """Log a warning if mismatches are allowed.

        Raises:
            ValueError: If they are not, with the refusal and what to do.
        """
        if not self.allow_mismatch:
            raise ValueError(
                f'{refusal} Set allow_resume_mismatch=True in train_cfg (large-batch '
                'loops) or VarianceSyncHook to resume it anyway, or start from its '
                'weights with load_from'
            )
        print_log(warning, logger='current', level=logging.WARNING)

    def before_train(self, runner: Runner) -> None:
        """Check the batch, and bring schedules to where the run has got.

        Raises:
            TypeError: If the state of the run cannot be saved.
            ValueError: If the checkpoint has another batch size, or schedules without
                their state follow a metric.
        """
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        if optimizer is not None and is_divided(optimizer):
            check_gathers(runner.optim_wrapper)
        if self.compares:
            self._check_batch(runner)
        compare_versions(runner)
        if self._fresh and self.replays:
            replay_schedules(runner, self._fresh)
        self.replays = False

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Note the iteration, which a loop that goes on without this hook does not."""
        if self.compares:
            runner.message_hub.update_info(LAST_UPDATE, runner.iter + 1)

    def _check_batch(self, runner: Runner) -> None:
        """Check that the run keeps its batch size, and store it in checkpoints."""
        hub, total = runner.message_hub, batch_size_of(runner).total
        counts = accumulative_counts(runner.optim_wrapper)
        now = dict(zip(STORED, (total, total // counts), strict=True))
        # At iteration 0 the hub may hold the values of an earlier run of this process.
        if runner.iter > 0:
            # A run of MMEngine's own loop, which this one continues, stores nothing.
            plain = not counts_updates(runner)
            saved = {
                name: hub.runtime_info.get(key, now[name] if plain else 'not stored')
                for name, key in STORED.items()
            }
            self.compare(saved, now, now)
        for name, key in STORED.items():
            hub.update_info(key, now[name])


def find_place(runner: Runner, checkpoint: dict) -> None:
    """Correct the epoch of a checkpoint, and remove what other loops have outdated.

    The epoch of a loop that counts iterations is always the same. Loops of MMEngine
    keep what an earlier run has stored in the message hub.
    """
    meta, hub = checkpoint['meta'], checkpoint['message_hub']
    info, outdated = hub['runtime_info'], set()
    if info.get(LAST_UPDATE, meta['iter']) < meta['iter']:
        outdated = {PLACE, *STORED.values()}
    elif not counts_updates(runner):
        outdated = {PLACE}
    for key in outdated.intersection(info):
        del info[key], hub['resumed_keys'][key]
    if PLACE in info and isinstance(runner.train_loop, EpochBasedTrainLoop):
        meta['epoch'] = info[PLACE][0]


def resume_hook(
    runner: Runner, *, allow_mismatch: bool = False, compares: bool = False
) -> ResumeHook:
    """Return the :class:`ResumeHook` of a run, which the first call registers.

    A true argument sets the attribute of the hook.

    Raises:
        TypeError: If ``allow_mismatch`` is not True or False.
    """
    check_flag('allow_resume_mismatch', allow_mismatch)
    hook = next((each for each in runner.hooks if isinstance(each, ResumeHook)), None)
    if hook is None:
        hook = ResumeHook()
        runner.register_hook(hook)
    hook.allow_mismatch |= allow_mismatch
    hook.compares |= compares
    return hook


def compare_versions(runner: Runner) -> None:
    """Log a warning if a resumed checkpoint is of other libraries; store the run's."""
    hub, now = runner.message_hub, library_versions()
    # At iteration 0 the hub may hold the values of an earlier run of this process.
    saved = hub.runtime_info.get(VERSIONS, now) if runner.iter > 0 else now
    changed = [
        f'{name} {saved[name]} then, {now[name]} now'
        for name in now
        if saved[name] != now[name]
    ]
    if changed:
        runner.logger.warning(
            f'resuming a checkpoint of other versions ({"; ".join(changed)}): random '
            'numbers and augmented images can differ from those of an uninterrupted run'
        )
    hub.update_info(VERSIONS, now)


def base_learning_rates(groups: Sequence[Mapping]) -> list[float]:
    """Return the different learning rates of groups before any schedule, sorted."""
    return sorted({float(group.get('initial_lr', group['lr'])) for group in groups})


def replay_schedules(runner: Runner, fresh: Sequence[dict]) -> None:
    """Bring schedules and parameter groups to where a run has got.

    Schedulers compute a value from the one before, which is in the groups of the
    optimizer. Without the state of either, all steps so far are repeated from the fresh
    states, those before the first update.

    Raises:
        ValueError: If one of them follows a metric.
    """
    schedulers, epoch_length = runner.param_schedulers, len(runner.train_dataloader)
    for scheduler, state in zip(schedulers, fresh, strict=True):
        if follows_metric(scheduler):
            raise ValueError(
                f'{type(scheduler).__name__} follows the metrics of the run so far, '
                'so its schedule cannot be resumed without the state of the optimizer; '
                'start from the weights with load_from'
            )
        scheduler.load_state_dict(state)
        groups = scheduler.optimizer.param_groups
        for group, value in zip(groups, scheduler.get_last_value(), strict=True):
            group[scheduler.param_name] = value
    for _ in step_schedules(schedulers, runner.iter, epoch_length, runner.epoch):
        pass


def is_whole(path: Path) -> bool:
    """Return whether a file is a complete zip archive, as ``torch.save`` writes it.

    Reads all of it and compares checksums, which torch does not; unpickles nothing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


def newest_resumable(folders: Iterable[Path], schedulers: int = 0) -> Path | None:
    """Return the checkpoint that was written last of those that a run can resume.

    ``schedulers`` is the number of its parameter schedulers.
    """
    paths = {path.resolve(): path for each in folders for path in each.glob('*.pth')}
    for path in sorted(paths.values(), key=lambda p: -p.stat().st_mtime_ns):
        missing = missing_parts(read_outline(path), schedulers=schedulers)
        if not missing and is_whole(path):
            return path
    return None


def advise(folders: Iterable[Path], schedulers: int) -> str:
    """Return how to continue from the newest checkpoint that a run can resume."""
    good = newest_resumable(folders, schedulers)
    if good is None:
        listed = ', '.join(dict.fromkeys(map(str, folders)))
        return f'there is no other checkpoint in {listed} that can be resumed'
    return (
        f'the newest good one is {good}; continue from it with --resume {good} '
        f"(load_from='{good}', resume=True)"
    )
