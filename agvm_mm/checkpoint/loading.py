"""Checkpoints that can be resumed: read safely, checked first, written whole."""

import os
import pickle
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import find_latest_checkpoint
from mmengine.utils import digit_version

LOADS_SAFELY = digit_version(torch.__version__) >= digit_version('2.6')
"""Whether ``torch.load`` refuses, unless told otherwise, what could run code."""

HISTORY_STATISTICS = ('min', 'max', 'current', 'mean')


def history_attribute(owner: type, name: str):
    """``getattr``, but for the statistics of MMEngine's log history alone.

    Raises:
        UnpicklingError: If a file asks for anything else.
    """
    if owner is not HistoryBuffer or name not in HISTORY_STATISTICS:
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def allow_runner_checkpoints() -> None:
    """Let ``torch.load`` read what MMEngine's Runner stores beside the weights.

    From 2.6 on torch loads only tensors and plain containers unless told otherwise.
    The Runner's log history is NumPy arrays in a class of MMEngine, with references
    to that class's own statistics; these are told to be harmless. A checkpoint that
    holds anything else is refused as before.
    """
    if not LOADS_SAFELY:
        return  # It loads everything.
    try:
        from numpy._core import multiarray
    except ImportError:  # NumPy 1
        from numpy.core import multiarray
    numbers = [type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'bool')]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (history_attribute, 'builtins.getattr'),
            # NumPy 2 moved the module; files name the one of their time.
            (multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),
            (multiarray._reconstruct, 'numpy._core.multiarray._reconstruct'),
            (multiarray.scalar, 'numpy.core.multiarray.scalar'),
            (multiarray.scalar, 'numpy._core.multiarray.scalar'),
            np.ndarray,
            np.dtype,
            *numbers,
        ]
    )


def prepare_resume(runner) -> None:
    """Make sure that the checkpoint a runner is about to resume can be read.

    Raises:
        RuntimeError: If it is truncated or corrupt; the message names the newest
            good one beside it.
    """
    allow_runner_checkpoints()
    if not runner._resume:
        return
    path = runner._load_from or find_latest_checkpoint(runner.work_dir)
    if path is None or '://' in path:
        return
    path = Path(path)
    if not path.is_file():
        problem = 'does not exist'
    elif not is_whole(path, path.stat().st_mtime_ns):
        problem = 'is truncated or corrupt'
    else:
        return
    good = newest_whole_checkpoint(path.parent, other_than=path)
    advice = (
        f'the newest good one is {good}; go on from it with --resume {good} '
        f"(load_from='{good}', resume=True)"
        if good
        else f'there is no other checkpoint in {path.parent}'
    )
    raise RuntimeError(f'the checkpoint to resume, {path}, {problem}; {advice}')


@lru_cache
def is_whole(path: Path, modified: int) -> bool:
    """Whether a file is a complete zip archive, as ``torch.save`` writes it.

    Reads it all and compares checksums; unpickles nothing.

    Args:
        path (Path): The file.
        modified (int): Its time of modification, so that a file that was written
            again is looked at again.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


def newest_whole_checkpoint(folder: Path, other_than: Path) -> Path | None:
    """The checkpoint of a folder that was written last and is complete."""
    paths = [path for path in folder.glob('*.pth') if path != other_than]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if is_whole(path, path.stat().st_mtime_ns):
            return path
    return None


class AtomicLocalBackend(LocalBackend):
    """Local files that appear whole or not at all, whatever interrupts the writing."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file beside the old one, then put it in its place."""
        filepath = Path(filepath)
        filepath.parent.mkdir(parents=True, exist_ok=True)
        unfinished = filepath.with_name(filepath.name + '.part')
        with open(unfinished, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, filepath)


register_backend('agvm_atomic', AtomicLocalBackend, force=True)
