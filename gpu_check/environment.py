"""Machine and software that the check needs and that its results depend on."""

import datetime
import importlib
import importlib.util
import platform

import torch
from torch.utils import collect_env

import agvm_mm


def missing_requirements() -> list[str]:
    """Return what the check needs but this installation or machine lacks."""
    missing = []
    if not torch.cuda.is_available():
        missing.append(f'a GPU that torch can use (torch {torch.__version__} has none)')
    packages = dict(mmdet='mmdet', mmcv='mmcv', sklearn='scikit-learn')
    packages['pycocotools'] = 'pycocotools'
    missing += [
        f'the package {name}'
        for module, name in packages.items()
        if importlib.util.find_spec(module) is None
    ]
    if importlib.util.find_spec('mmcv') and not mmcv_has_cuda():
        missing.append('mmcv compiled with CUDA')
    gpus = torch.cuda.device_count()
    if gpus > 1 and not torch.distributed.is_nccl_available():
        missing.append(f'a torch with NCCL, for {gpus} GPUs')
    return missing


def mmcv_has_cuda() -> bool:
    """Return whether mmcv's operators were compiled with CUDA."""
    try:
        ops = importlib.import_module('mmcv.ops')
    except ImportError:  # There are no operators at all.
        return False
    return ops.get_compiling_cuda_version() != 'not available'


def environment() -> dict:
    """Return facts about the machine and the software that the results depend on."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    nccl = torch.cuda.nccl.version() if gpus else ()
    return dict(
        gpus=[torch.cuda.get_device_name(index) for index in range(gpus)],
        driver=collect_env.get_nvidia_driver_version(collect_env.run),
        cuda=torch.version.cuda,
        nccl='.'.join(map(str, nccl)) or None,
        cudnn=torch.backends.cudnn.version() if gpus else None,
        torch=torch.__version__,
        **{
            name: getattr(importlib.import_module(name), '__version__', None)
            for name in ('mmengine', 'mmcv', 'mmdet')
        },
        agvm_mm=agvm_mm.__version__,
        python=platform.python_version(),
        date=datetime.date.today().isoformat(),
    )
