"""Root of the configs: a checkout, an installation, and neither."""

import subprocess
import sys
from pathlib import Path

import pytest

from agvm_mm.report.root import repository_root

ROOT = Path(__file__).resolve().parents[2]


def make_package(folder: Path, *places: str) -> Path:
    """Create an empty package, and the paper's results in some places around it."""
    package = folder / 'agvm_mm'
    package.mkdir()
    for place in places:
        results = folder / place / 'configs' / 'paper_results.json'
        results.parent.mkdir(parents=True)
        results.write_text('{}')
    return package


def test_checkout_is_its_own_root():
    assert repository_root() == ROOT


def test_installed_package_uses_its_copies(tmp_path: Path):
    # The folder of all packages can have a `configs` of another one.
    package = make_package(tmp_path, 'agvm_mm/.mim', '.')
    assert repository_root(package) == package / '.mim'


def test_folder_above_package_is_root_without_copies(tmp_path: Path):
    assert repository_root(make_package(tmp_path, '.')) == tmp_path


def test_missing_configs_are_an_error_that_names_both_places(tmp_path: Path):
    package = make_package(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'\.mim or .*install agvm_mm from'):
        repository_root(package)


def test_installed_package_finds_its_configs(tmp_path: Path):
    """The package with a copy of some configs in .mim, as `pip install .` leaves it."""
    package = tmp_path / 'agvm_mm'
    for source in [*ROOT.glob('agvm_mm/**/*.py')]:
        target = package / source.relative_to(ROOT / 'agvm_mm')
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    for source in ROOT.glob('configs/**/*.*'):
        if source.suffix in ('.py', '.yml', '.json'):
            target = package / '.mim' / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    code = (
        'from agvm_mm.report.root import repository_root; '
        'print(repository_root().as_posix())'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        cwd=tmp_path,
        env=dict(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    root = Path(done.stdout.splitlines()[-1])
    assert root == package / '.mim'
    assert (root / 'configs' / 'paper_results.json').is_file()
