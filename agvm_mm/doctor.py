"""Look at an installation and say what is wrong with it, and how to mend it.

    python -m agvm_mm.doctor

Where torch or MMEngine is missing or too old, the import of the package ends with the
command that installs it, and nothing is printed here. Otherwise it
prints a line for each thing it looked at. Exits with 1 if something that training
needs is broken, with 0 otherwise; what only some users need is a warning.
"""

import argparse
import functools
import importlib
import importlib.util
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass

OK, WARNING, PROBLEM = 'ok', 'warning', 'PROBLEM'
# The one release that both toolboxes take, against the torch that is there.
BUILD_MMCV = (
    'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps '
    'mmcv==2.1.0'
)


@dataclass(frozen=True)
class Finding:
    """What was found out about one thing.

    Args:
        name (str): The thing.
        state (str): 'ok', 'warning' or 'PROBLEM'.
        found (str): What was found.
        mend (str): The command or setting that helps. Defaults to '', nothing to do.
    """

    name: str
    state: str
    found: str
    mend: str = ''


def version_of(module: str) -> str:
    """A module's version; raises ImportError if it cannot be imported."""
    return str(getattr(importlib.import_module(module), '__version__', 'unknown'))


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind if there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_python() -> Finding:
    """Which Python this is."""
    found = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return Finding('python', OK, found)
    return Finding('python', WARNING, f'{found}, not tested', 'use Python 3.10 to 3.12')


def check_setuptools() -> Finding:
    """MMEngine 0.10 asks pkg_resources where MMDetection's configs lie."""
    try:
        importlib.import_module('pkg_resources')
    except ImportError as error:
        return Finding('setuptools', PROBLEM, str(error), 'pip install "setuptools<82"')
    return Finding('setuptools', OK, version_of('setuptools'))


def check_numpy() -> Finding:
    """A torch that was compiled against numpy 1 cannot hand arrays to numpy 2."""
    version = version_of('numpy')
    torch = importlib.import_module('torch')
    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:
        found = f'{version} does not go with torch {torch.__version__}: {error}'
        return Finding('numpy', PROBLEM, found, 'pip install "numpy<2"')
    return Finding('numpy', OK, version)


def check_mmcv() -> Finding:
    """mmcv and its compiled operators: built without torch it has none."""
    try:
        version = version_of('mmcv')
    except ImportError as error:
        return Finding('mmcv', PROBLEM, str(error), BUILD_MMCV)
    try:
        ops = importlib.import_module('mmcv.ops')
        torch = importlib.import_module('torch')
        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0]])
        _, kept = ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)
    except (ImportError, RuntimeError) as error:
        found = f'{version}, operators: {first_line(error)}'
        return Finding('mmcv', PROBLEM, found, BUILD_MMCV)
    if kept.tolist() != [0]:
        return Finding('mmcv', PROBLEM, f'{version}, nms is wrong', BUILD_MMCV)
    return Finding('mmcv', OK, f'{version}, operators run')


def check_toolbox(module: str, dist: str) -> Finding:
    """MMDetection or MMSegmentation, with all their models."""
    if importlib.util.find_spec(module) is None:
        return Finding(module, WARNING, 'not installed', f'pip install {dist}')
    try:
        version = version_of(module)
        importlib.import_module(f'{module}.models')
    except ModuleNotFoundError as error:
        missing = (error.name or '').partition('.')[0]
        if missing != 'mmcv':
            # Such as what MMSegmentation's tokenizer wants and does not require.
            mend = f'pip install {missing or dist}'
            return Finding(module, PROBLEM, str(error), mend)
        return Finding(module, PROBLEM, str(error), BUILD_MMCV)
    except Exception as error:
        # They assert the versions of mmcv and MMEngine, and import its operators.
        return Finding(module, PROBLEM, first_line(error), BUILD_MMCV)
    return Finding(module, OK, version)


def check_toolboxes() -> Finding:
    """At least one of the two has to be there."""
    for module in ('mmdet', 'mmseg'):
        if importlib.util.find_spec(module):
            return Finding('toolbox', OK, f'{module} is there')
    return Finding(
        'toolbox',
        PROBLEM,
        'neither MMDetection nor MMSegmentation is installed',
        'pip install "mmdet==3.3.0" or "mmsegmentation==1.2.2"',
    )


def check_registries() -> Finding:
    """The names that configs use."""
    from mmengine import registry

    import agvm_mm

    expected = {
        registry.OPTIM_WRAPPERS: ('AGVMOptimWrapper', 'AGVMAmpOptimWrapper'),
        registry.OPTIM_WRAPPER_CONSTRUCTORS: ('AGVMOptimWrapperConstructor',),
        registry.HOOKS: ('VarianceSyncHook', 'AtomicCheckpointHook'),
        registry.LOOPS: ('LargeBatchTrainLoop', 'LargeBatchIterTrainLoop'),
    }
    wrong = [
        name
        for where, names in expected.items()
        for name in names
        if where.get(name) is not getattr(agvm_mm, name)
    ]
    if wrong:
        return Finding(
            'registries',
            PROBLEM,
            f'another class is registered as {", ".join(wrong)}',
            'take the other package out of custom_imports',
        )
    return Finding('registries', OK, f'agvm_mm {agvm_mm.__version__} is registered')


def check_distributed() -> Finding:
    """What ranks can talk through."""
    import torch
    from torch import distributed as dist

    if not dist.is_available():
        return Finding(
            'distributed', PROBLEM, 'torch has no torch.distributed', 'another torch'
        )
    backends = [
        name
        for name, there in (
            ('nccl', dist.is_nccl_available()),
            ('gloo', dist.is_gloo_available()),
        )
        if there
    ]
    found = ', '.join(backends) or 'no backend'
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and 'nccl' not in backends:
        return Finding(
            'distributed', PROBLEM, f'{found}, but {gpus} GPU(s)', 'a torch with NCCL'
        )
    if not backends:
        return Finding('distributed', PROBLEM, found, 'a torch with gloo or NCCL')
    return Finding('distributed', OK, f'{found}; {gpus} GPU(s)')


def check_sync_bn() -> Finding:
    """SyncBN runs on GPUs only."""
    import torch

    if torch.cuda.is_available():
        return Finding('SyncBN', OK, 'runs on GPUs')
    return Finding(
        'SyncBN',
        WARNING,
        'has no CPU version',
        "agvm_mm's tools/dist_train.sh turns it into BN on CPUs",
    )


# What only some users need: its name, the module that is imported, what is not to be
# had without it, what installs it.
OPTIONAL = (
    (
        'panopticapi',
        'panopticapi.evaluation',
        'panoptic models can be neither trained nor evaluated',
        'pip install --no-deps panopticapi-lite==0.2.0',
    ),
    (
        'pycocotools',
        'pycocotools.mask',
        'no COCO data sets and metrics',
        'pip install pycocotools',
    ),
    (
        'scikit-learn',
        'sklearn.datasets',
        'no embedded digits',
        'pip install scikit-learn',
    ),
    ('matplotlib', 'matplotlib.pyplot', 'no figures', 'pip install matplotlib'),
    (
        'tensorboard',
        'torch.utils.tensorboard',
        'no charts in TensorBoard',
        'pip install tensorboard "setuptools<82"',
    ),
    (
        # MMEngine's Runner looks whether it is there, and dies if it is broken.
        'torchvision',
        'torchvision',
        'no weights from torchvision:// addresses, such as those of ResNet-50',
        'pip install torchvision  (the release that belongs to your torch)',
    ),
    (
        'baselines',
        'pytorch_optimizer',
        'neither LARS nor LAMB',
        'pip install "pytorch-optimizer>=4,<5"',
    ),
)


def check_optional(name: str, module: str, without: str, mend: str) -> Finding:
    """A package that may be missing, but not be broken.

    Args:
        name (str): What it is called.
        module (str): What is imported.
        without (str): What is not to be had without it.
        mend (str): The command that installs it.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Its own module, or one that it needs: both are installed by its name.
        return Finding(name, WARNING, f'{without} ({error})', mend)
    except Exception as error:
        # Compiled against another numpy or torch, for example.
        return Finding(
            name,
            PROBLEM,
            f'is installed and does not import: {first_line(error)}',
            mend.replace('install', 'install --force-reinstall', 1),
        )
    return Finding(name, OK, 'imports')


def check_resume() -> Finding:
    """Whether what the Runner stores can be loaded, as MMEngine loads it."""
    import io

    import torch
    from mmengine.logging.history_buffer import HistoryBuffer

    from agvm_mm.checkpoint.loading import LOADS_SAFELY, allow_runner_checkpoints

    allow_runner_checkpoints()
    history, file = HistoryBuffer(), io.BytesIO()
    history.update(1.0)
    torch.save(history, file)
    file.seek(0)
    try:
        torch.load(file)
    except Exception as error:
        return Finding(
            'weights_only',
            PROBLEM,
            f'a checkpoint of the Runner does not load: {first_line(error)}',
            'report torch, numpy and mmengine versions to agvm_mm',
        )
    if LOADS_SAFELY:
        return Finding('weights_only', OK, 'checkpoints of the Runner load safely')
    return Finding(
        'weights_only',
        OK,
        'checkpoints of the Runner load; so does any other file: before release 2.6 '
        'torch runs what is in it',
    )


def examine() -> list[Finding]:
    """Look at everything, in the order in which it is to be mended."""
    checks: list[Callable[[], Finding]] = [
        check_python,
        lambda: Finding('torch', OK, version_of('torch')),
        check_numpy,
        lambda: Finding('mmengine', OK, version_of('mmengine')),
        check_setuptools,
        check_mmcv,
        lambda: check_toolbox('mmdet', 'mmdet==3.3.0'),
        lambda: check_toolbox('mmseg', 'mmsegmentation==1.2.2'),
        check_toolboxes,
        check_registries,
        check_distributed,
        check_sync_bn,
        check_resume,
        *(functools.partial(check_optional, *what) for what in OPTIONAL),
    ]
    return [check() for check in checks]


def report(findings: list[Finding]) -> str:
    """One line for each finding, and one more where something is to be done."""
    lines = []
    for finding in findings:
        lines.append(f'{finding.state:<8} {finding.name:<13} {finding.found}')
        if finding.mend:
            lines.append(f'{"":<22} -> {finding.mend}')
    problems = sum(finding.state == PROBLEM for finding in findings)
    lines.append(
        f'{problems} problem(s)' if problems else 'All that training needs works.'
    )
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
    """Examine and print; returns the exit status."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    findings = examine()
    print(report(findings))
    return int(any(finding.state == PROBLEM for finding in findings))


if __name__ == '__main__':
    sys.exit(main())
