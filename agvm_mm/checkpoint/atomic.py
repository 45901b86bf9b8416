"""Files that are written as a whole or not at all, checkpoints first of all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from agvm_mm.engine import StepCheckpointHook


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


@HOOKS.register_module()
class AtomicCheckpointHook(StepCheckpointHook):
    """MMEngine's ``CheckpointHook`` that survives a crash while it saves.

    A checkpoint appears under its name only when it is complete. With
    ``max_keep_ckpts`` the oldest one is removed only after the new one is there
    (MMEngine removes it before).

    Args:
        args: As in MMEngine's ``CheckpointHook``.
        backend_args: As in MMEngine. With another storage than local files, that
            storage decides whether a checkpoint appears as a whole. Defaults to None,
            local files.
        kwargs: As in MMEngine's ``CheckpointHook``.

    Example:
        >>> default_hooks = dict(
        ...     checkpoint=dict(type='AtomicCheckpointHook', max_keep_ckpts=1)
        ... )
    """

    def __init__(
        self, *args: Any, backend_args: dict | None = None, **kwargs: Any
    ) -> None:
        if backend_args is None:
            backend_args = dict(backend='agvm_atomic')
        super().__init__(*args, backend_args=backend_args, **kwargs)

    def save_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save a checkpoint, then remove the oldest one if there are too many."""
        outdated = None
        if 0 < self.max_keep_ckpts == len(self.keep_ckpt_ids):
            outdated = self.keep_ckpt_ids[0] if self.keep_ckpt_ids[-1] != step else None
        if outdated is not None:
            # The base class removes only what is listed here.
            self.keep_ckpt_ids.popleft()
        super().save_step(runner, step, meta)
        if outdated is not None and is_main_process():
            path = self.file_backend.join_path(
                self.out_dir, self.filename_tmpl.format(outdated)
            )
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
