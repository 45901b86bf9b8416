"""Packages of the environment."""

from collections import defaultdict
from importlib import metadata


def packages_by_module() -> dict[str, list[str]]:
    """Return the installed packages by the modules that they have.

    As ``packages_distributions`` of importlib, which on CPython 3.10 knows only
    packages that list their modules.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for package in metadata.distributions():
        for file in package.files or ():
            found[file.parts[0].removesuffix('.py')].add(package.metadata['Name'])
    return {module: sorted(names) for module, names in found.items()}
