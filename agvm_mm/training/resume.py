"""Checks of the checkpoint that a run resumes."""

import copy
import logging
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import Runner, find_latest_checkpoint

from agvm_mm.engine import (
    ParamScheduler,
    accumulative_counts,
    checkpoint_to_resume,
    is_resuming,
)
from agvm_mm.training.batch import batch_size_of, counts_updates
from agvm_mm.training.loading import LOADS_SAFELY, allow_runner_checkpoints
from agvm_mm.training.outline import missing_parts, read_outline

# In the message hub, which is part of a checkpoint.
TOTAL_BATCH_SIZE = 'agvm_total_batch_size'
IMAGES_OF_ITERATION = 'agvm_images_of_iteration'
ALLOW = (
    'allow_resume_mismatch=True in train_cfg (large-batch loops) or VarianceSyncHook'
)


def check_resume(runner: Runner, **needs: Any) -> None:
    """Check that a runner can read the checkpoint that it is about to resume.

    Args:
        runner: Before it loads anything; it is about to resume.
        needs: What a checkpoint must have to be recommended; see
            :func:`~agvm_mm.training.outline.missing_parts`.

    Raises:
        RuntimeError: If the file is missing, truncated or corrupt, or the work folder
            does not say which one is the latest; the message names the newest one that
            can be resumed.
    """
    given, pointer = checkpoint_to_resume(runner), Path(runner.work_dir)
    pointer /= 'last_checkpoint'
    path = given or find_latest_checkpoint(runner.work_dir)
    if path and '://' in path:
        return
    folders = [pointer.parent]
    if path:
        file = Path(path).expanduser()
        folders.append(file.parent)
        if not file.is_file():
            problem = f'{path} does not exist'
        elif not is_whole(file, file.stat().st_mtime_ns):
            problem = f'{path} is truncated or corrupt'
        else:
            return
        problem += '' if given else f' ({pointer} names it)'
    elif path is None:
        # The first start of a run that always has `resume`.
        if newest_resumable(folders, **needs) is None:
            return
        problem = f'there is no {pointer}, which names the checkpoint'
    else:
        problem = f'{pointer}, which names the checkpoint, is empty'
    raise RuntimeError(
        f'cannot resume the training: {problem}; {advise(folders, **needs)}'
    )


def check_loaded(
    runner: Runner, checkpoint: Mapping, allowed: bool, **needs: Any
) -> list[str]:
    """Check that a checkpoint has everything that a run continues from.

    Args:
        runner: About to resume it.
        checkpoint: As loaded.
        allowed: Whether to resume without the state of optimizer and schedules.
        needs: As in :func:`check_resume`.

    Returns:
        What it lacks.

    Raises:
        ValueError: If something is missing and that is not allowed.
    """
    path = checkpoint_to_resume(runner) or find_latest_checkpoint(runner.work_dir)
    missing = missing_parts(checkpoint, **needs)
    if missing:
        folders = [Path(runner.work_dir)]
        if '://' not in path:
            folders.append(Path(path).expanduser().parent)
        check_parts(path, missing, advise(folders, **needs), allowed)
    return missing


def built_schedulers(runner: Runner) -> list[ParamScheduler]:
    """Return the parameter schedulers of a run; a runner that evaluates has none."""
    schedulers = runner.param_schedulers or ()
    return [each for each in schedulers if isinstance(each, ParamScheduler)]


class ResumeHook(Hook):
    """Hook that checks the checkpoint that a run resumes.

    Large-batch loops, ``VarianceSyncHook`` and ``AtomicCheckpointHook`` share the one
    that :func:`resume_hook` registers.

    Attributes:
        allow_mismatch: Whether to resume a checkpoint of another training, or without
            the state of the optimizer or its schedules.
        checks_batch: Whether the run knows its total batch.
        replays: Whether schedules have to be advanced to the update of the run.
    """

    # After the hooks that register it when the run begins.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self.allow_mismatch = False
        self.checks_batch = False
        self.replays = False
        self._fresh: list[dict] = []

    def before_run(self, runner: Runner) -> None:
        """Check the checkpoint to resume before the runner reads it.

        Raises:
            RuntimeError: If it is missing, truncated or corrupt.
        """
        allow_runner_checkpoints()
        if is_resuming(runner):
            schedulers = built_schedulers(runner)
            check_resume(runner, schedulers=len(schedulers))
            self._fresh = [copy.deepcopy(each.state_dict()) for each in schedulers]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check that a checkpoint to resume is complete.

        Raises:
            ValueError: If it lacks state, without which the run would start over.
        """
        # A runner that only evaluates has a config there.
        if is_resuming(runner) and isinstance(runner.optim_wrapper, BaseOptimWrapper):
            missing = check_loaded(
                runner,
                checkpoint,
                allowed=self.allow_mismatch,
                schedulers=len(built_schedulers(runner)),
            )
            self.replays = self.replays or bool(missing)

    def before_train(self, runner: Runner) -> None:
        """Check the batch, and bring schedules to where the run has got.

        Raises:
            ValueError: If the checkpoint has another batch size, or schedules without
                their state follow a metric.
        """
        if self.checks_batch:
            self._check_batch(runner)
        if self._fresh and self.replays:
            check_replay(runner.param_schedulers)
            replay_schedules(
                runner.param_schedulers,
                self._fresh,
                iterations=runner.iter,
                epochs=runner.epoch,
                epoch_length=len(runner.train_dataloader),
            )
        self.replays = False

    def _check_batch(self, runner: Runner) -> None:
        """Check that the run keeps its batch size, and store it in checkpoints."""
        hub, total = runner.message_hub, batch_size_of(runner).total
        of_iteration = total // accumulative_counts(runner.optim_wrapper)
        now = {'images of an update': total, 'images of an iteration': of_iteration}
        # At iteration 0 the hub may hold the values of an earlier run of this process.
        if runner.iter > 0:
            # A run of MMEngine's own loop, which this one continues, stores nothing.
            plain = not counts_updates(runner)
            keys = (TOTAL_BATCH_SIZE, IMAGES_OF_ITERATION)
            saved = {
                name: hub.runtime_info.get(key, now[name] if plain else 'not stored')
                for name, key in zip(now, keys, strict=True)
            }
            check_same_training(differing(saved, now, now), allowed=self.allow_mismatch)
        hub.update_info(TOTAL_BATCH_SIZE, total)
        hub.update_info(IMAGES_OF_ITERATION, of_iteration)


def resume_hook(
    runner: Runner, *, allow_mismatch: bool = False, checks_batch: bool = False
) -> ResumeHook:
    """Return the :class:`ResumeHook` of a run, which the first call registers.

    Args:
        runner: The runner.
        allow_mismatch: Sets the attribute of the hook if true.
        checks_batch: Sets the attribute of the hook if true.
    """
    hook = next((each for each in runner.hooks if isinstance(each, ResumeHook)), None)
    if hook is None:
        hook = ResumeHook()
        runner.register_hook(hook)
    hook.allow_mismatch |= allow_mismatch
    hook.checks_batch |= checks_batch
    return hook


def base_learning_rates(groups: Sequence[Mapping]) -> list[float]:
    """Return the different learning rates of groups before any schedule, sorted."""
    return sorted({float(group.get('initial_lr', group['lr'])) for group in groups})


def differing(saved: Mapping, now: Mapping, names: Iterable[str]) -> dict[str, tuple]:
    """Return the settings that differ between a checkpoint and this run.

    Args:
        saved: Settings of the checkpoint.
        now: Settings of this run.
        names: Settings to compare; those that either lacks are left out.

    Returns:
        Value of the checkpoint and value of this run, by setting.
    """
    return {
        name: (saved[name], now[name])
        for name in names
        if name in saved and name in now and saved[name] != now[name]
    }


def check_same_training(differences: Mapping[str, tuple], allowed: bool) -> None:
    """Check that a checkpoint does not differ from this run, or log the differences.

    Args:
        differences: From :func:`differing`.
        allowed: Whether to resume in spite of differences.

    Raises:
        ValueError: If there are differences and they are not allowed.
    """
    if not differences:
        return
    listed = '; '.join(
        f'{name}: {saved} in the checkpoint, {now} in this run'
        for name, (saved, now) in differences.items()
    )
    if not allowed:
        raise ValueError(
            f'the checkpoint belongs to another training ({listed}). Set {ALLOW} to '
            'resume it anyway, or start from its weights with load_from'
        )
    print_log(
        f'AGVM: resuming a checkpoint of another training ({listed})',
        logger='current',
        level=logging.WARNING,
    )


def replay_schedules(
    schedulers: Sequence[ParamScheduler],
    fresh: Sequence[dict],
    *,
    iterations: int,
    epochs: int,
    epoch_length: int,
) -> None:
    """Bring schedules and parameter groups to where a run has got.

    Schedulers compute a value from the one before, which is in the groups of the
    optimizer. Without the state of either, all steps so far are repeated.

    Args:
        schedulers: Of this run; changed in place, and so are the groups.
        fresh: Their states before the first update.
        iterations: Iterations so far.
        epochs: Epochs so far.
        epoch_length: Iterations of an epoch.
    """
    for scheduler, state in zip(schedulers, fresh, strict=True):
        scheduler.load_state_dict(copy.deepcopy(state))
        groups = scheduler.optimizer.param_groups
        for group, value in zip(groups, scheduler.get_last_value(), strict=True):
            group[scheduler.param_name] = value
    by_iteration, by_epoch = (
        [scheduler for scheduler in schedulers if scheduler.by_epoch is kind]
        for kind in (False, True)
    )
    with warnings.catch_warnings():
        # About steps of a schedule before the first step of the optimizer.
        warnings.simplefilter('ignore')
        for done in range(1, iterations + 1):
            steps = list(by_iteration)
            if done % epoch_length == 0 and done // epoch_length <= epochs:
                steps += by_epoch
            for scheduler in steps:
                scheduler.step()


def check_parts(path: str, missing: Sequence[str], advice: str, allowed: bool) -> None:
    """Check that a checkpoint has all that a run continues from, or log what it lacks.

    Args:
        path: The checkpoint to resume.
        missing: What it lacks.
        advice: Which other checkpoint to resume.
        allowed: Whether to continue without the state of optimizer and schedules.

    Raises:
        ValueError: If something is missing and that is not allowed, or the rest is not
            enough to resume.
    """
    if not missing:
        return
    problem = f'the checkpoint to resume, {path}, lacks {", ".join(missing)}'
    if not all(part.startswith(('optimizer', 'param_schedulers')) for part in missing):
        raise ValueError(
            f'{problem}: it has weights to start from with load_from (resume=False), '
            f'not the state of a training; {advice}'
        )
    if not allowed:
        raise ValueError(
            f'{problem}, which would start over; {advice}. Set {ALLOW} to resume it '
            'anyway, or start from its weights with load_from'
        )
    print_log(
        f'{problem}; resuming it without', logger='current', level=logging.WARNING
    )


def check_replay(schedulers: Sequence[object]) -> None:
    """Check that schedules can be continued without their state.

    Args:
        schedulers: Parameter schedulers of the run.

    Raises:
        ValueError: If one of them follows a metric.
    """
    for scheduler in schedulers:
        if getattr(scheduler, 'need_val_args', False):
            raise ValueError(
                f'{type(scheduler).__name__} follows the metrics of the run so far, '
                'so its schedule cannot be resumed without the state of the optimizer; '
                'start from the weights with load_from'
            )


@lru_cache
def is_whole(path: Path, modified: int) -> bool:
    """Return whether a file is a complete zip archive, as ``torch.save`` writes it.

    Reads all of it and compares checksums; unpickles nothing.

    Args:
        path: The file.
        modified: Its modification time, so that a file that was written again is
            checked again.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


def newest_resumable(folders: Iterable[Path], **needs: Any) -> Path | None:
    """Return the checkpoint that was written last of those that a run can resume.

    Args:
        folders: Where to look.
        needs: As in :func:`check_resume`.
    """
    paths = {
        path.resolve(): path for folder in folders for path in folder.glob('*.pth')
    }
    for path in sorted(
        paths.values(), key=lambda path: path.stat().st_mtime_ns, reverse=True
    ):
        if (
            not missing_parts(read_outline(path), **needs)
            and not unsafe_names(path)
            and is_whole(path, path.stat().st_mtime_ns)
        ):
            return path
    return None


def unsafe_names(path: Path) -> list[str]:
    """Return the types of a file that torch does not load safely."""
    if not LOADS_SAFELY:
        return []
    # onedl-mmengine takes its own types off the list after each file that it loads.
    allow_runner_checkpoints()
    return torch.serialization.get_unsafe_globals_in_checkpoint(path)


def advise(folders: Iterable[Path], **needs: Any) -> str:
    """Return how to continue from the newest checkpoint that a run can resume."""
    good = newest_resumable(folders, **needs)
    if good is None:
        listed = ', '.join(dict.fromkeys(map(str, folders)))
        return f'there is no other checkpoint in {listed} that can be resumed'
    return (
        f'the newest good one is {good}; continue from it with --resume {good} '
        f"(load_from='{good}', resume=True)"
    )
