"""What the command-line tools do to a config before a Runner is built from it.

Functions on configs, without side effects elsewhere, except for
:func:`init_cpu_process_group` and :func:`prepare_launcher`, which calls it where there
is no accelerator.
"""

import atexit
import os

import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from agvm_mm.validation import did_you_mean

AMP_WRAPPERS = {
    'OptimWrapper': 'AmpOptimWrapper',
    'AGVMOptimWrapper': 'AGVMAmpOptimWrapper',
}
"""The mixed-precision counterpart of each optimizer wrapper."""

SYNC_BN_TYPES = ('SyncBN', 'MMSyncBN')


def set_work_dir(cfg, work_dir, config_path):
    """Set ``cfg.work_dir``: the argument, the config's own, or the config's name.

    Args:
        cfg (Config): Changed in place.
        work_dir (str, optional): From the command line.
        config_path (str): Path of the config file.
    """
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        name = os.path.splitext(os.path.basename(config_path))[0]
        cfg.work_dir = os.path.join('work_dirs', name)


def set_resume(cfg, resume):
    """Set up resuming.

    Args:
        cfg (Config): Changed in place.
        resume (str, optional): ``'auto'`` for the latest checkpoint of the work
            folder, the path of a checkpoint, or None to leave ``cfg`` as it is.
    """
    if resume is None:
        return
    cfg.resume = True
    cfg.load_from = None if resume == 'auto' else resume


def enable_amp(cfg):
    """Turn the optimizer wrapper into its mixed-precision counterpart.

    Args:
        cfg (Config): Changed in place.

    Raises:
        ValueError: If the wrapper has no counterpart in :data:`AMP_WRAPPERS`.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if kind in AMP_WRAPPERS.values():
        return
    if kind not in AMP_WRAPPERS:
        raise ValueError(
            f'--amp knows {", ".join(AMP_WRAPPERS)}, but optim_wrapper.type is '
            f'{kind!r}: set its mixed-precision form in the config instead'
        )
    wrapper.type = AMP_WRAPPERS[kind]
    wrapper.setdefault('loss_scale', 'dynamic')


def enable_auto_scale_lr(cfg):
    """Scale the learning rate linearly with the batch size.

    MMEngine scales by ranks x images per rank. A large-batch loop has a total
    batch size of its own, so there the learning rate in the config is scaled; and so it
    is by the micro-batches that MMEngine accumulates, which it does not count.

    Args:
        cfg (Config): Changed in place. ``auto_scale_lr.base_batch_size`` is the
            batch size that the learning rate was chosen for.

    Raises:
        ValueError: If ``auto_scale_lr.base_batch_size`` is missing.
    """
    settings = cfg.get('auto_scale_lr') or {}
    if 'base_batch_size' not in settings:
        raise ValueError(
            '--auto-scale-lr needs the batch size that the learning rate was chosen '
            'for: set auto_scale_lr = dict(base_batch_size=...) in the config'
        )
    total = cfg.train_cfg.get('total_batch_size')
    settings.enable = total is None
    if total is not None:
        cfg.optim_wrapper.optimizer.lr *= total / settings.base_batch_size
    else:
        accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
        cfg.optim_wrapper.optimizer.lr *= accumulated


def prepare_launcher(cfg, launcher):
    """Make a config run under a launcher, also where there is no accelerator.

    Must be called before the Runner is built: without an accelerator it starts the
    process group, for MMEngine's own start asks for CUDA.

    Args:
        cfg (Config): Changed in place.
        launcher (str): ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ValueError: If slurm or mpi is asked for without an accelerator.
    """
    cfg.launcher = launcher
    if launcher == 'none' or get_device() != 'cpu':
        return
    if launcher != 'pytorch':
        raise ValueError(
            f'Without an accelerator only --launcher pytorch works, got {launcher}'
        )
    use_cpu_ranks(cfg)
    init_cpu_process_group()


def use_cpu_ranks(cfg):
    """Set up distributed data parallel training on CPUs.

    The model wrapper is told of no device, and SyncBN, which has no CPU version,
    becomes BatchNorm.

    Args:
        cfg (Config): Changed in place.
    """
    wrapper = ConfigDict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    wrapper.update(cfg.get('model_wrapper_cfg') or {})
    wrapper.device_ids = None
    cfg.model_wrapper_cfg = wrapper
    cfg.model = revert_sync_bn(cfg.model)
    cfg.sync_bn = None
    cfg.setdefault('env_cfg', ConfigDict())
    cfg.env_cfg.dist_cfg = ConfigDict(backend='gloo')


def revert_sync_bn(settings):
    """A copy of a (nested) config in which every SyncBN layer is a BatchNorm."""
    if isinstance(settings, dict):
        copy = {key: revert_sync_bn(value) for key, value in settings.items()}
        if copy.get('type') in SYNC_BN_TYPES:
            copy['type'] = 'BN'
        return ConfigDict(copy)
    if isinstance(settings, list | tuple):
        return type(settings)(revert_sync_bn(value) for value in settings)
    return settings


def init_cpu_process_group():
    """Start the gloo process group of the ranks that torchrun has started."""
    missing = [
        name
        for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
        if name not in os.environ
    ]
    if missing:
        raise RuntimeError(
            f'--launcher pytorch is for torchrun, which sets {", ".join(missing)}. '
            'Use tools/dist_train.sh, or leave --launcher out for one process'
        )
    dist.init_process_group('gloo')
    # A process that ends before gloo's threads do can be aborted by them.
    atexit.register(end_process_group)


def end_process_group():
    """Leave the process group, if it is still there."""
    if dist.is_initialized():
        dist.destroy_process_group()


def draw_predictions(cfg, folder):
    """Have the predictions of a test drawn into a folder.

    Args:
        cfg (Config): Changed in place; with its ``work_dir``.
        folder (str): A detector's hook takes one within the folder of the run, with
            its date. A segmenter's hook leaves it to the visualizer, which takes it
            within the work folder.

    Raises:
        ValueError: If ``default_hooks`` has no visualization hook to do it.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError(
            '--show-dir needs default_hooks.visualization in the config, such as '
            "dict(type='DetVisualizationHook')"
        )
    hook.draw = True
    if hook.type == 'SegVisualizationHook':
        cfg.visualizer.save_dir = os.path.join(cfg.work_dir, folder)
    else:
        hook.test_out_dir = folder


def dump_predictions(cfg, path):
    """Have the predictions of a test stored in a pickle file.

    Args:
        cfg (Config): Changed in place.
        path (str): Path of the file, ending in ``.pkl`` or ``.pickle``.
    """
    evaluators = cfg.test_evaluator
    if not isinstance(evaluators, list | tuple):
        evaluators = [evaluators]
    # MMDetection's own compresses masks.
    detection = cfg.get('default_scope') == 'mmdet'
    kind = 'DumpDetResults' if detection else 'DumpResults'
    cfg.test_evaluator = [*evaluators, dict(type=kind, out_file_path=path)]


def load_config(path, options=None):
    """Read a config file and merge ``--cfg-options`` into it.

    Args:
        path (str): Path of the config file.
        options (dict, optional): Values by dotted key.

    Returns:
        Config: The config.

    Raises:
        FileNotFoundError: If there is none; the message names the nearest beside it.
    """
    if not os.path.isfile(path):
        folder, name = os.path.split(path)
        folder = folder or '.'
        known = os.listdir(folder) if os.path.isdir(folder) else []
        raise FileNotFoundError(
            f'there is no config {path}.{did_you_mean(name, known)}'
        )
    cfg = Config.fromfile(path)
    if options:
        cfg.merge_from_dict(options)
    return cfg
