"""Parts of a checkpoint, found without reading its tensors or running its code."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

NEEDED_TO_LOAD = ('state_dict', 'meta', 'message_hub')
"""Parts without which MMEngine's Runner cannot resume a checkpoint at all."""


class Inert:
    """Stand-in for every object of a file that is not a plain container."""

    def __init__(self, *args, **kwargs) -> None:
        """Ignore the arguments."""

    def __call__(self, *args) -> 'Inert':
        """Return a stand-in."""
        return Inert()

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""

    def __setitem__(self, key: object, value: object) -> None:
        """Ignore an item."""

    def append(self, item: object) -> None:
        """Ignore an item."""


class InertUnpickler(pickle.Unpickler):
    """Unpickler that builds nothing but plain containers."""

    def find_class(self, module: str, name: str) -> type:
        """Return a stand-in, whatever a file names."""
        is_dict = (module, name) == ('collections', 'OrderedDict')
        return OrderedDict if is_dict else Inert

    def persistent_load(self, pid: object) -> None:
        """Leave out the values of a tensor."""


def read_outline(path: Path) -> object:
    """Return the containers of a file of ``torch.save``, and stand-ins for the rest.

    Reads no tensors and runs nothing that the file names. None if that fails.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith('data.pkl'))
            with archive.open(name) as file:
                return InertUnpickler(file).load()
    # An unpickler raises errors of any kind on a file that is not what it seems.
    except Exception:
        return None


def missing_parts(
    checkpoint: object, *, schedulers: int = 0, agvm: bool = False
) -> list[str]:
    """Return what a checkpoint lacks to continue a run, by the keys of MMEngine.

    Args:
        checkpoint: As MMEngine's Runner saves it, or its outline.
        schedulers: Parameter schedulers of the run. Defaults to 0.
        agvm: Whether its optimizer wrapper is one of AGVM. Defaults to False.
    """
    if not isinstance(checkpoint, Mapping):
        return [*NEEDED_TO_LOAD]
    missing = [part for part in NEEDED_TO_LOAD if part not in checkpoint]
    optimizer = checkpoint.get('optimizer')
    if optimizer is None:
        missing.append('optimizer')
    elif agvm and 'agvm' not in optimizer:
        missing.append('optimizer.agvm')
    if len(checkpoint.get('param_schedulers') or ()) < schedulers:
        missing.append('param_schedulers')
    return missing
