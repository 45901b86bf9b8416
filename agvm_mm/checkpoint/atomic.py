"""A CheckpointHook that never leaves a run without a good checkpoint."""

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

import agvm_mm.checkpoint.loading  # noqa: F401  registers the backend


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, safe against a death while it saves.

    A checkpoint appears under its name only when it is complete, and with
    ``max_keep_ckpts`` the oldest one goes only after the new one is there (MMEngine
    removes it before).

    Args:
        args: As in MMEngine's ``CheckpointHook``.
        backend_args (dict, optional): As in MMEngine; with another storage than
            local files, whether a checkpoint appears whole is up to that. Defaults
            to None, local files.
        kwargs: As in MMEngine's ``CheckpointHook``.

    Example:
        >>> default_hooks = dict(
        ...     checkpoint=dict(type='AtomicCheckpointHook', max_keep_ckpts=1)
        ... )
    """

    def __init__(self, *args, backend_args: dict | None = None, **kwargs) -> None:
        if backend_args is None:
            backend_args = dict(backend='agvm_atomic')
        super().__init__(*args, backend_args=backend_args, **kwargs)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        outdated = None
        if 0 < self.max_keep_ckpts == len(self.keep_ckpt_ids):
            outdated = self.keep_ckpt_ids[0] if self.keep_ckpt_ids[-1] != step else None
        if outdated is not None:
            # Not there, the base class removes nothing.
            self.keep_ckpt_ids.popleft()
        super()._save_checkpoint_with_step(runner, step, meta)
        if outdated is not None and is_main_process():
            path = self.file_backend.join_path(
                self.out_dir, self.filename_tmpl.format(outdated)
            )
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
