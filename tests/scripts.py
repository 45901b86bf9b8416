"""The command-line scripts of tools/, run inside the process of a test."""

import runpy
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_script(name: str, *arguments: object) -> int | str:
    """Run a script in the repository and return its exit status or final message.

    The imports that other tests have done are reused, unlike in a subprocess.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, 'argv', [name, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
        except SystemExit as stop:
            return stop.code or 0
    return 0


def load_script(name: str) -> ModuleType:
    """Import a script as a module, without running its main function."""
    spec = util.spec_from_file_location(Path(name).stem, ROOT / 'tools' / name)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
