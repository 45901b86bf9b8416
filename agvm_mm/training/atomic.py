"""Files that are written as a whole or not at all, checkpoints first of all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from agvm_mm.engine import OpenCheckpointHook
from agvm_mm.training.resume import built_schedulers, check_resume


@contextmanager
def replaced_when_whole(path: Path, *, sole_writer: bool = False) -> Iterator[Path]:
    """Yield a path next to ``path`` to write to, and move it to ``path`` at the end.

    On an error ``path`` stays as it was. An existing file or folder is replaced. A
    file is flushed to the disk first.

    Args:
        path: File or folder to write. Missing parents are created.
        sole_writer: Whether no other process writes ``path`` now. Leftovers of killed
            writers are then removed first. Defaults to False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f'.{path.name}.partial-'
    if sole_writer:
        for leftover in path.parent.glob(f'{prefix}*'):
            _remove(leftover)
    partial = path.with_name(f'{prefix}{os.getpid()}')
    outdated = path.with_name(f'{prefix}{os.getpid()}-old')
    try:
        yield partial
        if partial.is_dir():
            # A rename does not replace a folder.
            if path.exists():
                path.rename(outdated)
        else:
            with open(partial, 'rb') as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        if outdated.exists() and not path.exists():  # Interrupted between two renames.
            outdated.rename(path)
        _remove(partial)
        _remove(outdated)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class AtomicLocalBackend(LocalBackend):
    """MMEngine's backend for local files, which here are written as a whole."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file."""
        # Only the main process saves checkpoints.
        with replaced_when_whole(Path(filepath), sole_writer=True) as partial:
            partial.write_bytes(obj)


register_backend('agvm_atomic', AtomicLocalBackend, force=True)


class View:
    """An object with some attributes replaced.

    Args:
        viewed: The object, which stays as it is.
        replaced: Attributes of the view.
    """

    def __init__(self, viewed: object, **replaced: object) -> None:
        self.__dict__.update(replaced)
        self._viewed = viewed

    def __getattr__(self, name: str) -> object:
        return getattr(self._viewed, name)


@HOOKS.register_module()
class AtomicCheckpointHook(OpenCheckpointHook):
    """MMEngine's ``CheckpointHook`` that survives a crash while it saves.

    A checkpoint appears under its name only when it is complete, and so does the file
    ``last_checkpoint``. With ``max_keep_ckpts`` or ``save_best`` the one before is
    removed only after the new one is there (MMEngine removes it before). The arguments
    are those of MMEngine's hook. With another storage than local files
    (``out_dir='s3://...'``, ``backend_args``), that storage decides whether a
    checkpoint appears as a whole.

    Example:
        >>> default_hooks = dict(
        ...     checkpoint=dict(type='AtomicCheckpointHook', max_keep_ckpts=1)
        ... )
    """

    def before_run(self, runner: Runner) -> None:
        """Check the checkpoint to resume before the runner reads it.

        Raises:
            RuntimeError: If it is missing, truncated or corrupt.
        """
        check_resume(runner, schedulers=len(built_schedulers(runner)))

    def before_train(self, runner: Runner) -> None:
        """Choose the storage; local files are written as a whole.

        Raises:
            ValueError: If nothing can be written to ``out_dir``.
        """
        named = (self.backend_args or self.file_client_args or {}).get('backend')
        out_dir = str(self.out_dir or runner.work_dir)
        check_can_write(out_dir)
        if named in ('local', 'disk') or (named is None and '://' not in out_dir):
            self.file_client_args = None
            self.backend_args = dict(backend='agvm_atomic')
        super().before_train(runner)

    @contextmanager
    def _removals_last(self) -> Iterator[None]:
        """Remove files only when nothing has failed until the end."""
        backend, outdated = self.file_backend, []
        self.file_backend = View(backend, remove=outdated.append)
        try:
            yield
        finally:
            self.file_backend = backend
        # With several metrics there is a dict of them.
        best = getattr(self, 'best_ckpt_path_dict', {}).values()
        current = {self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best}
        for path in outdated:
            if path not in current:  # A second evaluation of the same step.
                backend.remove(path)

    def save_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save a checkpoint, then remove the oldest one if there are too many."""
        work_dir = Path(runner.work_dir)
        # MMEngine writes `last_checkpoint` there, in steps.
        partial_dir = work_dir / '.last_checkpoint.partial'
        if is_main_process():
            partial_dir.mkdir(exist_ok=True)
        with self._removals_last():
            super().save_step(View(runner, work_dir=str(partial_dir)), step, meta)
            if is_main_process():
                with replaced_when_whole(
                    work_dir / 'last_checkpoint', sole_writer=True
                ) as partial:
                    os.replace(partial_dir / 'last_checkpoint', partial)
                partial_dir.rmdir()

    def save_best_step(self, runner: Runner, metrics: dict) -> None:
        """Save the best checkpoints so far, then remove those before."""
        if self.save_best:
            with self._removals_last():
                super().save_best_step(runner, metrics)


def check_can_write(out_dir: str) -> None:
    """Check that checkpoints can be written to a folder.

    Args:
        out_dir: From the config.

    Raises:
        ValueError: If MMEngine can only read there.
    """
    if out_dir.startswith(('http://', 'https://')):
        raise ValueError(
            f'out_dir={out_dir!r}: nothing can be written there; use a local folder '
            'or a storage such as s3://'
        )
