"""Checks of the checkpoint that a run resumes."""

import copy
import zipfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import Runner, find_latest_checkpoint

from agvm_mm.engine import ParamScheduler, checkpoint_to_resume, is_resuming
from agvm_mm.preflight import check_parts, check_replay
from agvm_mm.training.loading import LOADS_SAFELY, allow_runner_checkpoints
from agvm_mm.training.match import replay_schedules
from agvm_mm.training.outline import missing_parts, read_outline


def check_resume(runner: Runner, **needs: Any) -> None:
    """Check that a runner can read the checkpoint that it is about to resume.

    Also calls :func:`allow_runner_checkpoints`.

    Args:
        runner: Before it loads anything.
        needs: What a checkpoint must have to be recommended; see
            :func:`~agvm_mm.training.outline.missing_parts`.

    Raises:
        RuntimeError: If the file is missing, truncated or corrupt, or the work folder
            does not say which one is the latest; the message names the newest one that
            can be resumed.
    """
    allow_runner_checkpoints()
    if not is_resuming(runner):
        return
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

    Args:
        allow_resume_mismatch: Whether to resume a checkpoint without the state of the
            optimizer or its schedules. Defaults to False; an optimizer wrapper of AGVM
            has this argument itself.
    """

    priority = 'VERY_HIGH'
    agvm = False
    """Whether the run needs the state of AGVM."""

    def __init__(self, allow_resume_mismatch: bool = False) -> None:
        self.allow_resume_mismatch = allow_resume_mismatch
        self._missing: list[str] = []
        self._fresh: list[dict] = []

    def _needs(self, runner: Runner) -> dict:
        return dict(schedulers=len(built_schedulers(runner)), agvm=self.agvm)

    def before_run(self, runner: Runner) -> None:
        """Check the checkpoint to resume before the runner reads it.

        Raises:
            RuntimeError: If it is missing, truncated or corrupt.
        """
        check_resume(runner, **self._needs(runner))
        if is_resuming(runner):
            self._fresh = [
                copy.deepcopy(scheduler.state_dict())
                for scheduler in built_schedulers(runner)
            ]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check that a checkpoint to resume is complete.

        Raises:
            ValueError: If it lacks state, without which the run would start over.
        """
        # A runner that only evaluates has a config there.
        if is_resuming(runner) and isinstance(runner.optim_wrapper, BaseOptimWrapper):
            allowed = self.allow_resume_mismatch or getattr(
                runner.optim_wrapper, 'allow_resume_mismatch', False
            )
            self._missing = check_loaded(
                runner, checkpoint, allowed, **self._needs(runner)
            )

    def before_train(self, runner: Runner) -> None:
        """Bring schedules to where the run has got if their values are missing.

        Raises:
            ValueError: If one of them follows a metric.
        """
        has_new_groups = getattr(runner.optim_wrapper, 'has_new_groups', False)
        missing, self._missing = self._missing, []
        runner.optim_wrapper.has_new_groups = False
        if self._fresh and (missing or has_new_groups):
            check_replay(runner.param_schedulers)
            replay_schedules(
                runner.param_schedulers,
                self._fresh,
                iterations=runner.iter,
                epochs=runner.epoch,
                epoch_length=len(runner.train_dataloader),
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
