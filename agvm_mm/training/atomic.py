"""Files that are written as a whole or not at all, checkpoints first of all."""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import torch
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from agvm_mm.training.resume import resume_hook


@contextmanager
def replaced_when_whole(path: Path, *, sole_writer: bool = False) -> Iterator[Path]:
    """Yield a path next to ``path`` to write to, and move it to ``path`` at the end.

    On an error ``path`` stays as it was. An existing file or folder is replaced, and
    missing parents are created. A file is flushed to the disk first. The sole writer
    of ``path``, while no other process writes it, first removes what killed writers
    left over.
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


def save(checkpoint: dict, file: BinaryIO) -> None:
    """Save a checkpoint; if the disk is full, the error says so, unlike torch's."""
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def check_writable(folder: Path) -> None:
    """Make a folder; raise a ValueError if no file can be created in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f'checkpoints go to {folder}, where nothing can be written ({error}); set '
            'out_dir of the checkpoint hook or work_dir to another folder'
        ) from error


class AtomicLocalBackend(LocalBackend):
    """MMEngine's backend for local files, which here are written as a whole.

    Args:
        held (dict, optional): Entries of a checkpoint that are not in the bytes to
            write. They go into the file straight from where they are.
    """

    def __init__(self, held: dict | None = None) -> None:
        self.held = held

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file, those of a checkpoint with the held entries."""
        # Only the main process saves checkpoints.
        with replaced_when_whole(Path(filepath), sole_writer=True) as partial:
            if self.held:
                rest = torch.load(io.BytesIO(obj), weights_only=False)
                with partial.open('wb') as file:
                    save({**rest, **self.held}, file)
                self.held.clear()
            else:
                partial.write_bytes(obj)


register_backend('agvm_atomic', AtomicLocalBackend, force=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
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

    # Entries held for a local file during a save; None for other storages.
    _held: dict | None = None
    _saves = False

    def before_run(self, runner: Runner) -> None:
        """Have a :class:`.ResumeHook` check the checkpoint to resume."""
        resume_hook(runner)

    def before_train(self, runner: Runner) -> None:
        """Choose the storage; local files are written as a whole.

        Raises:
            ValueError: If nothing can be written to ``out_dir``.
        """
        out_dir = str(self.out_dir or runner.work_dir)
        if out_dir.startswith(('http://', 'https://')):
            raise ValueError(
                f'out_dir={out_dir!r}: nothing can be written there; use a local '
                'folder or a storage such as s3://'
            )
        named = (self.backend_args or self.file_client_args or {}).get('backend')
        if named in ('local', 'disk') or (named is None and '://' not in out_dir):
            self.file_client_args = None
            self._held = {}
            self.backend_args = dict(backend='agvm_atomic', held=self._held)
        super().before_train(runner)
        if self._held is not None and is_main_process():
            check_writable(Path(self.out_dir))

    @contextmanager
    def _saving(self, runner: Runner) -> Iterator[None]:
        """Gather the divided state on rank 0, which alone saves it."""
        with ExitStack() as stack:
            for owner in (runner.model, runner.optim_wrapper):
                if hasattr(owner, 'gathered'):
                    stack.enter_context(owner.gathered())
            self._saves = True
            try:
                yield
            finally:
                self._saves = False
                (self._held or {}).clear()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Hold the tensors for the local file; MMEngine would copy them as bytes."""
        # Others call Runner.save_checkpoint, too, and may write somewhere else.
        if self._saves and self._held is not None:
            for key in checkpoint.keys() - {'meta', 'message_hub', 'param_schedulers'}:
                self._held[key] = checkpoint.pop(key)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save a checkpoint, name it in ``last_checkpoint``, then remove the oldest."""
        hub, outdated = runner.message_hub, None
        # After a validation MMEngine saves the same step again.
        if self.max_keep_ckpts > 0 and step not in [*self.keep_ckpt_ids][-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self._path(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.last_ckpt = self._path(step)
        hub.update_info('last_ckpt', self.last_ckpt)
        with self._saving(runner):
            runner.save_checkpoint(
                self.out_dir,
                self.filename_tmpl.format(step),
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        if is_main_process():
            pointer = Path(runner.work_dir, 'last_checkpoint')
            with replaced_when_whole(pointer, sole_writer=True) as partial:
                partial.write_text(self.last_ckpt)
            self._remove(outdated, replaced_by=self.last_ckpt)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """Save the best checkpoints so far, then remove those before."""
        if not self.save_best:
            return
        before, self.best_paths = self.best_paths, [None] * len(self.save_best)
        try:
            # It finds none to remove.
            with self._saving(runner):
                super()._save_best_checkpoint(runner, metrics)
        finally:
            pairs = list(zip(before, self.best_paths, strict=True))
            self.best_paths = [new or old for old, new in pairs]
        for old, new in pairs:
            if is_main_process() and self._remove(old, replaced_by=new):
                runner.logger.info(f'The previous best checkpoint {old} is removed')

    @property
    def best_paths(self) -> list[str | None]:
        """The best checkpoint so far by each metric of ``save_best``."""
        if len(self.save_best) == 1:
            return [self.best_ckpt_path]
        return [self.best_ckpt_path_dict.get(name) for name in self.save_best]

    @best_paths.setter
    def best_paths(self, paths: list[str | None]) -> None:
        if len(self.save_best) == 1:
            (self.best_ckpt_path,) = paths
        else:
            self.best_ckpt_path_dict = dict(zip(self.save_best, paths, strict=True))

    def _path(self, step: int) -> str:
        name = self.filename_tmpl.format(step)
        return self.file_backend.join_path(self.out_dir, name)

    def _remove(self, path: str | None, *, replaced_by: str | None) -> bool:
        """Remove a checkpoint if another one has replaced it; return whether so."""
        if path is None or replaced_by in (None, path):
            return False
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # DeepSpeed writes folders.
            self.file_backend.rmtree(path)
        else:
            return False
        return True
