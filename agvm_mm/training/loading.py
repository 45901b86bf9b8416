"""Checkpoints of MMEngine's Runner, loaded safely."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.utils import digit_version

from agvm_mm.engine import ParamScheduler

LOADS_SAFELY = digit_version(torch.__version__) >= digit_version('2.6')
"""Whether ``torch.load`` by default refuses files that could run code."""

NEEDED = ('state_dict', 'meta', 'message_hub', 'optimizer')
"""Parts of a checkpoint from which every run continues."""

HISTORY_STATISTICS = ('min', 'max', 'current', 'mean')


def static_methods(kind: type) -> dict[type, set[str]]:
    """Return the names of the static methods of a class and all that inherit from it.

    They are listed by the class that defines them.
    """
    own = {
        name for name, value in vars(kind).items() if isinstance(value, staticmethod)
    }
    found = {kind: own} if own else {}
    for child in kind.__subclasses__():
        found |= static_methods(child)
    return found


def stored_method(owner: type, name: str) -> object:
    """Return a method that MMEngine stores by its class; ``getattr`` for nothing else.

    These are the statistics of its log history and the static methods of parameter
    schedulers. A file cannot call what this returns.

    Raises:
        UnpicklingError: If a file asks for anything else.
    """
    allowed = {HistoryBuffer: HISTORY_STATISTICS} | static_methods(ParamScheduler)
    if isinstance(owner, type) and name in allowed.get(owner, ()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')


def empty_bytes() -> bytes:
    """Return no bytes, which a file asks for by ``bytes()``; it may ask for no more."""
    return b''


def runner_types() -> list[type | tuple[object, str]]:
    """Return what MMEngine's Runner stores besides tensors and plain containers.

    The log history and its statistics, NumPy numbers, strings and arrays of these,
    configs, and the methods that parameter schedulers keep. Not among them are NumPy's
    objects and structures, whose memory layout a file describes.
    """
    try:
        from numpy._core import multiarray
    except ImportError:  # NumPy 1
        from numpy.core import multiarray
    numbers = {type(np.dtype(scalar)) for scalar in np.sctypeDict.values()}
    numbers -= {type(np.dtype(object)), type(np.dtype(np.void))}
    return [
        HistoryBuffer,
        Config,
        ConfigDict,
        *static_methods(ParamScheduler),
        (stored_method, 'builtins.getattr'),
        (empty_bytes, 'builtins.bytes'),
        # NumPy 2 moved the module; files name the module of their version.
        (multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),
        (multiarray._reconstruct, 'numpy._core.multiarray._reconstruct'),
        (multiarray.scalar, 'numpy.core.multiarray.scalar'),
        (multiarray.scalar, 'numpy._core.multiarray.scalar'),
        np.ndarray,
        np.dtype,
        *numbers,
    ]


def allow_runner_checkpoints() -> None:
    """Allow ``torch.load`` to read everything that MMEngine's Runner stores.

    From 2.6 on torch loads only tensors and plain containers by default. The types of
    :func:`runner_types` are added to its list of safe types. A checkpoint with anything
    else is refused as before.
    """
    if LOADS_SAFELY:  # Otherwise it loads everything.
        torch.serialization.add_safe_globals(runner_types())


def read_outline(path: Path) -> object:
    """Return a checkpoint without the values of its tensors.

    Return None if the local file cannot be loaded safely, or is not a whole archive.
    Before 2.6 torch reads the tensors as well, and runs what a file names.
    """
    options = dict(map_location='cpu', weights_only=False)
    if LOADS_SAFELY:
        # onedl-mmengine takes its own types off the list after each file that it loads.
        allow_runner_checkpoints()
        options = dict(map_location='meta', weights_only=True, mmap=True)
    try:
        return torch.load(str(path), **options)
    # An unpickler raises errors of any kind on a file that is not what it seems.
    except Exception:
        return None


def missing_parts(checkpoint: object, *, schedulers: int = 0) -> list[str]:
    """Return what a checkpoint lacks to continue a run, by the keys of MMEngine.

    ``schedulers`` is the number of parameter schedulers of the run.
    """
    if not isinstance(checkpoint, Mapping):
        return [*NEEDED]
    missing = [part for part in NEEDED if checkpoint.get(part) is None]
    if len(checkpoint.get('param_schedulers') or ()) < schedulers:
        missing.append('param_schedulers')
    return missing
