"""Checkpoints that are read safely and checked before they are resumed."""

import pickle
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.utils import digit_version

from agvm_mm.engine import checkpoint_to_resume, is_resuming

LOADS_SAFELY = digit_version(torch.__version__) >= digit_version('2.6')
"""Whether ``torch.load`` by default refuses files that could run code."""

HISTORY_STATISTICS = ('min', 'max', 'current', 'mean')


def history_attribute(owner: type, name: str) -> object:
    """Return a statistic of MMEngine's log history; ``getattr`` for nothing else.

    Raises:
        UnpicklingError: If a file asks for anything else.
    """
    if owner is not HistoryBuffer or name not in HISTORY_STATISTICS:
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def allow_runner_checkpoints() -> None:
    """Allow ``torch.load`` to read everything that MMEngine's Runner stores.

    From 2.6 on torch loads only tensors and plain containers by default. The Runner's
    log history consists of NumPy arrays in a class of MMEngine, with references to that
    class's own statistics. These are added to torch's list of safe types. A checkpoint
    with anything else is refused as before.
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
            # NumPy 2 moved the module; files name the module of their version.
            (multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),
            (multiarray._reconstruct, 'numpy._core.multiarray._reconstruct'),
            (multiarray.scalar, 'numpy.core.multiarray.scalar'),
            (multiarray.scalar, 'numpy._core.multiarray.scalar'),
            np.ndarray,
            np.dtype,
            *numbers,
        ]
    )


def check_resume(runner: Runner) -> None:
    """Check that a runner can read the checkpoint that it is about to resume.

    Also calls :func:`allow_runner_checkpoints`.

    Raises:
        RuntimeError: If the file is missing, truncated or corrupt; the message names
            the newest good one in its folder.
    """
    allow_runner_checkpoints()
    if not is_resuming(runner):
        return
    path = checkpoint_to_resume(runner) or find_latest_checkpoint(runner.work_dir)
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
        f'the newest good one is {good}; continue from it with --resume {good} '
        f"(load_from='{good}', resume=True)"
        if good
        else f'there is no other checkpoint in {path.parent}'
    )
    raise RuntimeError(f'the checkpoint to resume, {path}, {problem}; {advice}')


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


def newest_whole_checkpoint(folder: Path, other_than: Path) -> Path | None:
    """Return the complete checkpoint of a folder that was written last, or None."""
    paths = [path for path in folder.glob('*.pth') if path != other_than]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if is_whole(path, path.stat().st_mtime_ns):
            return path
    return None
