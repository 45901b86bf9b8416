"""Check of the required packages and their versions, and packages of forks."""

from importlib import import_module, metadata

# Names of modules, because forks of MMEngine such as onedl-mmengine also work.
REQUIRED = {'torch': '2.0', 'mmengine': '0.10.0'}
INSTALL_WITH = {'torch': 'torch', 'mmengine': '"mmengine>=0.10.0"'}
# The usual build needs libraries of a desktop, such as libGL.
# Both have the same files, so that of the two which is left must be installed again.
HEADLESS = (
    'pip uninstall opencv-python, then '
    'pip install --force-reinstall --no-deps opencv-python-headless'
)


def check_versions() -> None:
    """Check that torch and MMEngine are installed and new enough, and OpenCV works.

    Raises:
        ImportError: If one is missing, broken or too old; the message contains the
            command that fixes it.
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
    try:
        import_module('cv2')  # MMEngine's hooks need it.
    except ImportError as error:
        raise ImportError(f'OpenCV cannot be imported ({error}): {HEADLESS}') from error


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that draw random numbers and warp images."""
    modules = {'torch': 'torch', 'numpy': 'numpy', 'OpenCV': 'cv2'}
    # Plain strings, which checkpoints hold.
    return {name: str(import_module(own).__version__) for name, own in modules.items()}


def is_installed(package: str) -> bool:
    """Return whether a package is installed under this name."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def find_configs_of_forks() -> None:
    """Let configs inherit from ``mmseg::`` with the onedl forks.

    onedl-mmengine looks for these files in the package mmsegmentation, which its stack
    does not have; ``mmengine.hub`` even installs it over onedl-mmsegmentation.
    """
    if not is_installed('onedl-mmengine'):
        return
    from mmengine.config.utils import MODULE2PACKAGE

    for module, package in MODULE2PACKAGE.items():
        fork = f'onedl-{package}'
        if not is_installed(package) and is_installed(fork):
            MODULE2PACKAGE[module] = fork
