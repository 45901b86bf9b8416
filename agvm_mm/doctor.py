"""Examine an installation and report what is wrong and how to fix it.

    python -m agvm_mm.doctor

If torch or MMEngine is missing or too old, importing the package fails with the command
that installs it, and nothing is printed here. Otherwise one line is printed for each
thing examined. The exit status is 1 if something that training needs is broken and 0
otherwise; a missing package that only some users need is a warning.

``python -m gpu_check``, from a clone of the repository, trains on the GPUs of a machine
and compares the results with the CPU's.
"""

import argparse
import importlib
import importlib.util
import io
import platform
import re
import sys
from importlib import metadata
from typing import NamedTuple

import torch
from mmengine.logging.history_buffer import HistoryBuffer
from torch import distributed as dist

import agvm_mm
from agvm_mm.compat import is_installed
from agvm_mm.training.loading import LOADS_SAFELY, allow_runner_checkpoints

OK, WARNING, PROBLEM = 'ok', 'warning', 'PROBLEM'
# Packages of the modules: the one release of OpenMMLab's mmcv that both its toolboxes
# accept, and maintained forks with the same module names.
PACKAGES = {
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv==2.1.0', 'onedl-mmcv'),
    'mmdet': ('mmdet==3.3.0', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation==1.2.2', 'onedl-mmsegmentation'),
}
# Packages that are not named after their module.
PACKAGE_OF = {'cv2': 'opencv-python', 'PIL': 'pillow', 'yaml': 'pyyaml'}
GPU_CHECK = (
    'to check training on them: python -m gpu_check in a clone of the repository'
)


class Finding(NamedTuple):
    """Result of one examination: its subject, state, finding and fix."""

    name: str
    state: str
    found: str
    fix: str = ''


def packages() -> dict[str, str]:
    """Return the package of each module, a fork if MMEngine is one."""
    fork = is_installed('onedl-mmengine')
    return {module: names[fork] for module, names in PACKAGES.items()}


def build_mmcv() -> str:
    """Return the command that builds mmcv's operators against the installed torch."""
    return (
        'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps '
        + packages()['mmcv']
    )


def install_torchvision() -> str:
    """Return the command that installs the torchvision of the installed torch."""
    version, _, build = torch.__version__.partition('+')
    major, minor = map(int, version.split('.')[:2])
    # 0.15 was released with torch 2.0, 0.16 with 2.1 and so on.
    package = f'"torchvision==0.{minor + 15}.*"' if major == 2 else 'torchvision'
    known = re.fullmatch(r'cpu|xpu|cu\d+|rocm[\d.]+', build)
    index = f'--index-url https://download.pytorch.org/whl/{build} ' if known else ''
    return f'pip install --force-reinstall --no-deps {index}{package}'


def install_missing(error: Exception, module: str) -> str:
    """Return the command that installs what the import of a module lacks.

    It is empty if that is the module itself, or if the error is another one.
    """
    missing = (getattr(error, 'name', None) or '').partition('.')[0]
    if not isinstance(error, ModuleNotFoundError) or missing in ('', module):
        return ''
    if missing == 'torchvision':
        return install_torchvision()
    # pip keeps the torch that it is given, whatever the package requires.
    keep = f'"torch=={torch.__version__.partition("+")[0]}"'
    return f'pip install {PACKAGE_OF.get(missing, missing)} {keep}'


def version_of(module: str) -> str:
    """Import a module and return its version."""
    return str(getattr(importlib.import_module(module), '__version__', 'unknown'))


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def examine_python() -> Finding:
    """Compare the Python release with the tested ones."""
    found = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return Finding('python', OK, found)
    return Finding('python', WARNING, f'{found}, not tested', 'use Python 3.10 to 3.12')


def examine_setuptools() -> Finding:
    """Import pkg_resources, which MMEngine 0.10 uses to find MMDetection's configs."""
    try:
        importlib.import_module('pkg_resources')
    except Exception as error:
        found = first_line(error)
        return Finding('setuptools', PROBLEM, found, 'pip install "setuptools<82"')
    return Finding('setuptools', OK, version_of('setuptools'))


def examine_numpy() -> Finding:
    """Convert a tensor to numpy, which a torch built for numpy 1 cannot do with 2."""
    version = version_of('numpy')
    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:
        found = f'{version} does not work with torch {torch.__version__}: {error}'
        # OpenCV 5 needs numpy 2.
        fix = 'pip install "numpy<2" "opencv-python<5"'
        return Finding('numpy', PROBLEM, found, fix)
    return Finding('numpy', OK, version)


def examine_torchvision() -> Finding:
    """Import torchvision, which belongs to one release of torch.

    MMEngine's Runner and other packages import it if it is installed, and fail if it
    is broken.
    """
    name, fix = 'torchvision', install_torchvision()
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        found = 'no weights from torchvision:// URLs, such as those of ResNet-50'
        return Finding(name, WARNING, f'not installed: {found}', fix)
    found = f'{version} with torch {torch.__version__}'
    try:
        importlib.import_module(name)
    except Exception as error:
        return Finding(name, PROBLEM, f'{found}: {first_line(error)}', fix)
    if '==' in fix and f'=={".".join(version.split(".")[:2])}.' not in fix:
        return Finding(name, WARNING, f'{found}, which is not its release', fix)
    return Finding(name, OK, version)


def examine_opencv() -> Finding:
    """Import OpenCV, which mmcv needs."""
    try:
        return Finding('opencv', OK, version_of('cv2'))
    except Exception as error:
        # The usual build needs libraries of a desktop, such as libGL.
        fix = install_missing(error, '') or (
            'pip uninstall opencv-python, then '
            'pip install --no-deps opencv-python-headless'
        )
        return Finding('opencv', PROBLEM, first_line(error), fix)


def examine_stack() -> Finding:
    """Look for modules that two packages have overwritten for each other."""
    owners = metadata.packages_distributions()
    sets = [sorted(set(owners.get(module, ()))) for module in PACKAGES]
    both = [name for names in sets if len(names) > 1 for name in names]
    if both:
        fix = f'pip uninstall {" ".join(both)}, then install one of each again'
        found = f'{", ".join(both)} contain the same modules'
        return Finding('stack', PROBLEM, found, fix)
    stack = 'onedl' if is_installed('onedl-mmengine') else 'OpenMMLab'
    return Finding('stack', OK, f'packages of {stack}')


def examine_mmcv() -> Finding:
    """Run one of mmcv's compiled operators; an mmcv built without torch has none."""
    found = ''
    try:
        version = version_of('mmcv')
        found = f'{version}, operators: '
        ops = importlib.import_module('mmcv.ops')
        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0]])
        _, kept = ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)
    except Exception as error:
        fix = install_missing(error, 'mmcv') or build_mmcv()
        return Finding('mmcv', PROBLEM, found + first_line(error), fix)
    if kept.tolist() != [0]:
        return Finding('mmcv', PROBLEM, f'{version}, nms is wrong', build_mmcv())
    return Finding('mmcv', OK, f'{version}, operators run')


def examine_toolbox(module: str) -> Finding:
    """Import MMDetection or MMSegmentation (mmdet or mmseg) with all its models."""
    package = packages()[module]
    if importlib.util.find_spec(module) is None:
        return Finding(module, WARNING, 'not installed', f'pip install {package}')
    try:
        version = version_of(module)
        importlib.import_module(f'{module}.models')
    except Exception as error:
        # MMSegmentation's tokenizer, for example, imports packages that it does not
        # require. Both toolboxes assert the version of mmcv.
        found = first_line(error)
        fix = build_mmcv() if found.startswith('MMCV==') else ''
        fix = fix or install_missing(error, module)
        show = f'python -c "import {module}.models" shows which package fails'
        return Finding(module, PROBLEM, found, fix or show)
    return Finding(module, OK, version)


def examine_toolboxes() -> Finding:
    """Find at least one of the two toolboxes."""
    for module in ('mmdet', 'mmseg'):
        if importlib.util.find_spec(module):
            return Finding('toolbox', OK, f'{module} is installed')
    found = 'neither MMDetection nor MMSegmentation is installed'
    fix = 'pip install "{mmdet}" or "{mmseg}"'.format(**packages())
    return Finding('toolbox', PROBLEM, found, fix)


def examine_distributed() -> Finding:
    """Look for the backends through which ranks communicate."""
    name = 'distributed'
    if not dist.is_available():
        fix = 'install a torch with torch.distributed'
        return Finding(name, PROBLEM, 'torch has no torch.distributed', fix)
    nccl, gloo = dist.is_nccl_available(), dist.is_gloo_available()
    found = ', '.join(['nccl'] * nccl + ['gloo'] * gloo) or 'no backend'
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and not nccl:
        fix = 'install a torch with NCCL'
        return Finding(name, PROBLEM, f'{found}, but {gpus} GPU(s)', fix)
    if not (nccl or gloo):
        return Finding(name, PROBLEM, found, 'install a torch with gloo or NCCL')
    return Finding(name, OK, f'{found}; {gpus} GPU(s)', GPU_CHECK if gpus else '')


def examine_checkpoints() -> Finding:
    """Load an object that the Runner stores in checkpoints, as MMEngine loads it."""
    allow_runner_checkpoints()
    history, file = HistoryBuffer(), io.BytesIO()
    history.update(1.0)
    torch.save(history, file)
    file.seek(0)
    try:
        torch.load(file)
    except Exception as error:
        found = f"the Runner's checkpoints do not load: {first_line(error)}"
        fix = 'report the versions of torch, numpy and mmengine to agvm_mm'
        return Finding('weights_only', PROBLEM, found, fix)
    found = "the Runner's checkpoints load safely"
    if not LOADS_SAFELY:
        found = (
            "the Runner's checkpoints load; before release 2.6 torch also loads any "
            'other file and runs the code in it'
        )
    return Finding('weights_only', OK, found)


# Packages that only some users need: name, module to import, what does not work without
# it, what pip installs.
OPTIONAL = (
    (
        'panopticapi',
        'panopticapi.evaluation',
        'panoptic models can be neither trained nor evaluated',
        '--no-deps panopticapi-lite==0.2.0',
    ),
    ('pycocotools', 'pycocotools.mask', 'no COCO data sets, metrics', 'pycocotools'),
    ('scikit-learn', 'sklearn.datasets', 'no embedded digits', 'scikit-learn'),
    ('matplotlib', 'matplotlib.pyplot', 'no figures', 'matplotlib'),
    ('tensorboard', 'torch.utils.tensorboard', 'no charts in it', 'tensorboard'),
    (
        'baselines',
        'pytorch_optimizer',
        'no LARS, LAMB',
        '--no-deps "pytorch-optimizer>=4,<5"',
    ),
)


def examine_optional(name: str, module: str, without: str, package: str) -> Finding:
    """Import a package that may be missing but must not be broken; see OPTIONAL."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        fix = install_missing(error, module.partition('.')[0])
        fix = fix or f'pip install {package}'
        return Finding(name, WARNING, f'{without} ({error})', fix)
    except Exception as error:
        # Compiled against another numpy or torch, for example. Without --no-deps pip
        # would also install numpy and torch again, in their newest releases.
        found = f'is installed but cannot be imported: {first_line(error)}'
        package = package.removeprefix('--no-deps ')
        fix = f'pip install --force-reinstall --no-deps {package}'
        return Finding(name, PROBLEM, found, fix)
    return Finding(name, OK, 'imports')


def examine_installation() -> list[Finding]:
    """Examine everything, in the order in which problems should be fixed."""
    findings = [
        examine_python(),
        Finding('torch', OK, version_of('torch')),
        examine_numpy(),
        examine_torchvision(),
        examine_opencv(),
        Finding('mmengine', OK, version_of('mmengine')),
        # Its import registers all classes, or fails if a name is taken.
        Finding('agvm_mm', OK, agvm_mm.__version__),
        examine_setuptools(),
        examine_stack(),
    ]
    # These import those above, whose problems no reinstallation of them can solve.
    for examine, *args in (
        (examine_mmcv,),
        (examine_toolbox, 'mmdet'),
        (examine_toolbox, 'mmseg'),
        *((examine_optional, *row) for row in OPTIONAL),
    ):
        finding = examine(*args)
        if finding.state == PROBLEM and PROBLEM in {f.state for f in findings}:
            finding = finding._replace(fix='fix what is above, then run this again')
        findings.append(finding)
    return [
        *findings,
        examine_toolboxes(),
        examine_distributed(),
        examine_checkpoints(),
    ]


def main(argv: list[str] | None = None) -> int:
    """Print one line for each finding and one for each fix; return the exit status."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    findings = examine_installation()
    for finding in findings:
        print(f'{finding.state:<8} {finding.name:<13} {finding.found}')
        if finding.fix:
            print(f'{"":<22} -> {finding.fix}')
    problems = sum(finding.state == PROBLEM for finding in findings)
    works = 'Everything that training needs works.'
    print(f'{problems} problem(s)' if problems else works)
    return int(problems > 0)


if __name__ == '__main__':
    sys.exit(main())
