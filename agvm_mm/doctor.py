"""Examine an installation and report what is wrong and how to fix it.

    python -m agvm_mm.doctor

If torch or MMEngine is missing or too old, or OpenCV cannot be imported, importing the
package fails with the command that fixes it, and nothing is printed here. Otherwise one
line is printed for each thing examined. The exit status is 1 if something that training
needs is broken and 0 otherwise; a missing package that only some users need is a
warning.

``python -m gpu_check``, from a clone of the repository, trains on the GPUs of a machine
and compares the results with the CPU's.
"""

import argparse
import importlib
import io
import platform
import re
import sys
from importlib import metadata
from typing import NamedTuple

import mmengine
import torch
from mmengine.device import get_device
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.utils import digit_version
from torch import distributed as dist

import agvm_mm
from agvm_mm.compat import is_installed
from agvm_mm.training.loading import allow_runner_checkpoints

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


class Finding(NamedTuple):
    """Result of one examination: its subject, state, finding and fix."""

    name: str
    state: str
    found: str
    fix: str = ''


# Packages that only some users need: name, module to import, what pip installs, what
# does not work without it.
OPTIONAL = (
    (
        'panopticapi',
        'panopticapi.evaluation',
        '--no-deps panopticapi-lite==0.2.0',
        'panoptic models can be neither trained nor evaluated',
    ),
    ('pycocotools', 'pycocotools.mask', 'pycocotools', 'no COCO data sets, metrics'),
    ('scikit-learn', 'sklearn.datasets', 'scikit-learn', 'no embedded digits'),
    ('matplotlib', 'matplotlib.pyplot', 'matplotlib', 'no figures'),
    ('tensorboard', 'torch.utils.tensorboard', 'tensorboard', 'no charts in it'),
    (
        'baselines',
        'pytorch_optimizer',
        '--no-deps "pytorch-optimizer>=4,<5"',
        'no LARS, LAMB',
    ),
)


def packages() -> dict[str, str]:
    """Return the package of each module, a fork if MMEngine is one."""
    fork = is_installed('onedl-mmengine')
    return {module: names[fork] for module, names in PACKAGES.items()}


def build_mmcv() -> str:
    """Return the command that builds mmcv's operators against the installed torch."""
    command = (
        'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps '
        + packages()['mmcv']
    )
    if digit_version(torch.__version__) >= digit_version('2.14'):
        # Its headers are C++20. mmcv 2.1.0 asks for 17, and the last one counts.
        command = (
            """printf '#!/bin/sh\\nexec c++ "$@" -std=c++20\\n' > c++20 && """
            'chmod +x c++20 && CXX=$PWD/c++20 NVCC_APPEND_FLAGS=-std=c++20 ' + command
        )
    return command


def install_torchvision() -> str:
    """Return the command that installs the torchvision of the installed torch."""
    version, _, build = torch.__version__.partition('+')
    major, minor = map(int, version.split('.')[:2])
    # 0.15 was released with torch 2.0, 0.16 with 2.1 and so on.
    package = f'"torchvision==0.{minor + 15}.*"' if major == 2 else 'torchvision'
    known = re.fullmatch(r'cpu|xpu|cu\d+|rocm[\d.]+', build)
    index = f'--index-url https://download.pytorch.org/whl/{build} ' if known else ''
    return f'pip install --force-reinstall --no-deps {index}{package}'


def install_missing(missing: str) -> str:
    """Return the command that installs the package of a missing module."""
    if missing == 'torchvision':
        return install_torchvision()
    # pip keeps the torch that it is given, whatever the package requires.
    keep = f'"torch=={torch.__version__.partition("+")[0]}"'
    return f'pip install {PACKAGE_OF.get(missing, missing)} {keep}'


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    # Some messages, such as those of transformers, begin with an empty line.
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def examine_import(
    name: str, module: str, package: str, without: str = '', repair: str = ''
) -> Finding:
    """Import a module, which pip installs as ``package``, with flags.

    ``without`` says what does not work if it is missing, '' if nothing does. If it is
    broken, the fix is the ``repair``, or to install the package again.
    """
    try:
        # A folder that an uninstallation left behind can be imported as well.
        if importlib.import_module(module).__spec__.origin is None:
            raise ImportError(f'{module} is a folder without a module')
    except Exception as error:
        found, missing = first_line(error), ''
        if isinstance(error, ModuleNotFoundError):
            missing = (error.name or '').partition('.')[0]
        itself = missing in (name, module.partition('.')[0])
        if itself and without:
            return Finding(
                name, WARNING, f'{found}: {without}', f'pip install {package}'
            )
        if missing and not itself:
            return Finding(name, PROBLEM, found, install_missing(missing))
        # Without --no-deps pip would also install torch and numpy again.
        package = package.removeprefix('--no-deps ')
        again = f'pip install --force-reinstall --no-deps {package}'
        return Finding(name, PROBLEM, found, repair or again)
    # tensorboard is imported through torch, and OpenCV's module is cv2.
    found = sys.modules.get(name, sys.modules.get(module.partition('.')[0]))
    return Finding(name, OK, getattr(found, '__version__', 'imports'))


def examine_twins() -> list[Finding]:
    """Look for packages with the same files: those of the last one are left."""
    owners = metadata.packages_distributions()
    twins = {module: sorted({*owners.get(module, ())}) for module in (*PACKAGES, 'cv2')}
    return [
        Finding(
            module,
            WARNING,
            f'{" and ".join(packages)} have the same files',
            f'pip uninstall {" ".join(packages)}, then pip install --no-deps one',
        )
        for module, packages in twins.items()
        if len(packages) > 1
    ]


def examine_numpy() -> Finding:
    """Convert a tensor to numpy, which a torch built for numpy 1 cannot do with 2."""
    version = metadata.version('numpy')
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


def examine_mmcv() -> Finding:
    """Run one of mmcv's compiled operators where a run would.

    An mmcv built without torch has none, and one built without CUDA none for GPUs.
    """
    fix, device = build_mmcv(), get_device()
    finding = examine_import('mmcv', 'mmcv.ops', '', repair=fix)
    if finding.state != OK:
        return finding
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0]])
    nms = importlib.import_module('mmcv.ops').nms
    try:
        _, kept = nms(boxes.to(device), torch.tensor([0.9, 0.8]).to(device), 0.5)
        found, works = 'nms is wrong', kept.tolist() == [0]
    except Exception as error:
        found, works = first_line(error), False
    if not works:
        return Finding('mmcv', PROBLEM, f'{finding.found}, {found}', fix)
    return Finding('mmcv', OK, f'{finding.found}, operators run on {device}')


def examine_toolbox(module: str) -> Finding:
    """Import MMDetection or MMSegmentation (mmdet or mmseg) with all its models."""
    models = f'{module}.models'
    finding = examine_import(
        module,
        models,
        packages()[module],
        without='one toolbox suffices',
        repair=f'python -c "import {models}" shows which package fails',
    )
    if finding.found.startswith('MMCV=='):  # Both assert its version.
        finding = finding._replace(fix=build_mmcv())
    return finding


def examine_distributed() -> Finding:
    """Look for the backends through which ranks communicate."""
    nccl, gloo = dist.is_nccl_available(), dist.is_gloo_available()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    backends = ', '.join(['nccl'] * nccl + ['gloo'] * gloo) or 'no backend'
    found = f'{backends}; {gpus} GPU(s)'
    if not nccl and (gpus or not gloo):
        fix = 'install a torch with NCCL, or without GPUs with gloo'
        return Finding('distributed', PROBLEM, found, fix)
    check = 'python -m gpu_check in a clone of the repository'
    advice = f'to check training on them: {check}' if gpus else ''
    return Finding('distributed', OK, found, advice)


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
    return Finding('weights_only', OK, "the Runner's checkpoints load")


def examine_installation() -> list[Finding]:
    """Examine everything, in the order in which problems should be fixed."""
    findings = [
        Finding('python', OK, platform.python_version()),
        Finding('torch', OK, torch.__version__),
        *examine_twins(),
        examine_numpy(),
        examine_torchvision(),
        examine_import('opencv', 'cv2', 'opencv-python'),
        Finding('mmengine', OK, mmengine.__version__),
        # Its import registers all classes, or fails if a name is taken.
        Finding('agvm_mm', OK, agvm_mm.__version__),
        # MMEngine 0.10 finds MMDetection's configs by it.
        examine_import('setuptools', 'pkg_resources', '"setuptools<82"'),
    ]
    # These import those above, whose problems no reinstallation of them can solve.
    toolboxes = [examine_toolbox(module) for module in ('mmdet', 'mmseg')]
    others = [examine_import(*row) for row in OPTIONAL]
    for finding in (examine_mmcv(), *toolboxes, *others):
        if finding.state == PROBLEM and PROBLEM in {f.state for f in findings}:
            finding = finding._replace(fix='fix what is above, then run this again')
        findings.append(finding)
    if all(finding.state == WARNING for finding in toolboxes):
        found = 'neither MMDetection nor MMSegmentation is installed'
        fix = 'pip install "{mmdet}" or "{mmseg}"'.format(**packages())
        findings.append(Finding('toolbox', PROBLEM, found, fix))
    return [*findings, examine_distributed(), examine_checkpoints()]


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
