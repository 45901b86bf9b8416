"""Checks that what this package stands on is there, and new enough."""

from importlib import import_module

# By module name: forks of MMEngine, such as onedl-mmengine, count as well.
REQUIRED = {'torch': '2.0', 'mmengine': '0.10.0'}
INSTALL_WITH = {'torch': 'torch', 'mmengine': '"mmengine>=0.10.0"'}


def check_versions() -> None:
    """Check that torch and MMEngine can be imported and are new enough.

    Raises:
        ImportError: If one is missing or too old; the message holds the command
            that installs it.
    """
    found = {}
    for name in REQUIRED:
        try:
            found[name] = import_module(name).__version__
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ImportError(
                f'agvm_mm needs {name}; install it: pip install {INSTALL_WITH[name]}'
            ) from error
    from mmengine.utils import digit_version

    for name, minimum in REQUIRED.items():
        if digit_version(found[name]) < digit_version(minimum):
            raise ImportError(
                f'agvm_mm needs {name}>={minimum}, found {found[name]}: '
                f'pip install -U {INSTALL_WITH[name]}'
            )
