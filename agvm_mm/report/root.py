"""Location of the configs and tools that belong to the package."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def repository_root(package: Path = PACKAGE) -> Path:
    """Return the folder that contains ``configs`` and ``tools``.

    This is the repository for a checkout and for an editable installation. A plain
    installation has copies of both folders in ``agvm_mm/.mim`` (see setup.py).

    Args:
        package: Folder of the package.

    Raises:
        FileNotFoundError: If there are no configs in either place.
    """
    candidates = (package / '.mim', package.parent)
    for root in candidates:
        if (root / 'configs' / 'paper_results.json').is_file():
            return root
    raise FileNotFoundError(
        f'no configs/paper_results.json in {" or ".join(map(str, candidates))}: '
        'install agvm_mm from its repository'
    )
