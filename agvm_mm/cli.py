"""Command-line flags that the tools share, and what they change in a config.

The functions that take a config change it in place. They have no other side effects,
except for :func:`prepare_launcher`, which starts the process group where there is no
accelerator.
"""

import argparse
import atexit
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch.distributed as dist
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS, RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from agvm_mm import engine
from agvm_mm.training.loading import allow_runner_checkpoints
from agvm_mm.training.preemption import (
    Preempted,
    PreemptionHook,
    end_at_once,
    end_before_training,
    protect_workers,
)
from agvm_mm.training.resume import newest_resumable
from agvm_mm.validation import (
    check_optimizer_type,
    did_you_mean,
    package_of,
    resolve_type,
    type_name,
)

AMP_WRAPPERS = {
    'OptimWrapper': 'AmpOptimWrapper',
    'AGVMOptimWrapper': 'AGVMAmpOptimWrapper',
}
"""The mixed-precision counterpart of each optimizer wrapper."""

PREEMPTED_FILE = 'AGVM_PREEMPTED_FILE'
"""Environment variable in which ``tools/torchrun.py`` names a file to its ranks.

A rank that stops on a signal creates it and ends with status 0: torchrun would restart
any other.
"""


class DeviceRunner(Runner):
    """Runner whose ranks may also be CPU cores.

    There the model wrapper gets no device, and BatchNorm takes the place of SyncBN,
    which has no CPU version. A ``runner_type`` for CPU ranks derives from this class.
    """

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for this rank."""
        if not self.distributed or get_device() != 'cpu':
            return super().wrap_model(model_wrapper_cfg, model)
        # Not in the config: models make SyncBN by themselves, too.
        model = revert_sync_batchnorm(model)
        kind = (model_wrapper_cfg or {}).get('type', DistributedDataParallel)
        if not issubclass(resolve_type(kind, MODEL_WRAPPERS), DistributedDataParallel):
            return super().wrap_model(model_wrapper_cfg, model)
        settings = ConfigDict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=self.cfg.get('find_unused_parameters', False),
        )
        settings.update(model_wrapper_cfg or {}, device_ids=None)
        return MODEL_WRAPPERS.build(settings, default_args=dict(module=model))


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add the config and ``--cfg-options`` to a parser."""
    parser.add_argument('config', help='path of the config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override those of the config, as key=value; a key may '
        'be dotted, a list is key="[a,b]" or key=a,b',
    )


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a tool that runs a config."""
    add_config_flags(parser)
    parser.add_argument(
        '--work-dir',
        help='folder for the output of the run; by default work_dirs/<config name>',
    )
    add_launcher_flags(parser)


def add_launcher_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a tool that runs on several ranks."""
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='program that started the ranks',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_figure_flags(parser: argparse.ArgumentParser, *, out: str) -> None:
    """Add the flags of a tool that draws a figure, by default into ``out``."""
    parser.add_argument(
        '--out',
        nargs='+',
        default=[out],
        help=f'pictures to write, by default {out}; the suffix gives the format',
    )
    parser.add_argument('--title', help='title of the figure')


def count(text: str) -> int:
    """Convert an argument that must be a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {text}')
    return int(text)


def message_of(error: Exception) -> str:
    """Return the message of an error; a KeyError would show it in quotes."""
    return str(error.args[0]) if isinstance(error, KeyError) else str(error)


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config file and merge ``--cfg-options`` into it, values by dotted key.

    The path may be the name of a config in an installed toolbox, such as
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'.

    Raises:
        FileNotFoundError: If there is no such file. The message suggests the nearest
            name in its folder.
        ModuleNotFoundError: If the toolbox is not installed.
    """
    toolbox, separator, name = path.partition('::')
    file = stock_folder(toolbox) / name if separator else Path(path)
    if not file.is_file():
        near = did_you_mean(file.name, (each.name for each in file.parent.glob('*')))
        raise FileNotFoundError(f'there is no config {file}.{near}')
    cfg = Config.fromfile(file)
    if options:
        cfg.merge_from_dict(options)
    return cfg


def stock_folder(toolbox: str) -> Path:
    """Return the folder with the configs of an installed toolbox."""
    spec = find_spec(toolbox)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f'{toolbox} is not installed')
    return Path(spec.origin).parent / '.mim' / 'configs'


def load_run_config(args: argparse.Namespace) -> Config:
    """Read the config of a run from the flags of :func:`add_run_flags`."""
    # torchrun sets the variable; other launchers pass the argument.
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    by_name = f'work_dirs/{Path(args.config).stem}'
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or by_name
    return cfg


def build_runner(cfg: Config, launcher: str) -> Runner:
    """Build a Runner; see :func:`prepare_launcher`.

    Raises:
        KeyError: If there is no such optimizer.
    """
    prepare_launcher(cfg, launcher)
    allow_runner_checkpoints()
    if resolve_type(cfg.get('runner_type', Runner), RUNNERS) is Runner:
        runner = DeviceRunner.from_cfg(cfg)
    else:
        runner = RUNNERS.build(cfg)
    check_optimizer_type((cfg.get('optim_wrapper') or {}).get('optimizer'))
    return runner


def train(runner: Runner) -> None:
    """Train; a run with a :class:`PreemptionHook` handles signals of a scheduler.

    Raises:
        Preempted: If the training stopped on a signal.
    """
    hook = next((h for h in runner.hooks if isinstance(h, PreemptionHook)), None)
    if hook is None:
        runner.train()
        return
    try:
        hook.handle(end_before_training)
        dataloader = engine.build_train_dataloader(runner)
        if dataloader is not None:
            protect_workers(dataloader, hook.signals)
        runner.train()
    except Preempted as stop:
        if PREEMPTED_FILE in os.environ:
            Path(os.environ[PREEMPTED_FILE]).touch()
            stop.code = 0
        # Launchers terminate ranks that end slightly later than others.
        hook.restore_handlers()
        end_at_once(hook.signals, stop.code)
        raise
    finally:
        # After a failure as well; no hook is told of it.
        hook.restore_handlers()


def set_resume(cfg: Config, resume: str | None) -> None:
    """Set up resuming from a checkpoint; None leaves the config unchanged.

    ``'auto'`` is the latest checkpoint of the work folder. If there is none, the run is
    a new one, which begins from the weights of ``load_from``.
    """
    if resume is None:
        return
    named = resume != 'auto' or find_latest_checkpoint(cfg.work_dir) is not None
    if not named and newest_resumable([Path(cfg.work_dir)]) is None:
        return
    cfg.resume = True
    cfg.load_from = None if resume == 'auto' else resume


def enable_amp(cfg: Config) -> None:
    """Replace the optimizer wrapper by its mixed-precision counterpart.

    Raises:
        ValueError: If the wrapper has no counterpart in :data:`AMP_WRAPPERS`.
    """
    wrapper = cfg.optim_wrapper
    kind = type_name(wrapper.get('type', 'OptimWrapper'))
    if kind in AMP_WRAPPERS.values():
        return
    if kind not in AMP_WRAPPERS:
        raise ValueError(
            f'--amp supports {", ".join(AMP_WRAPPERS)}, got optim_wrapper.type='
            f'{kind!r}: set its mixed-precision form in the config instead'
        )
    wrapper.type = AMP_WRAPPERS[kind]
    wrapper.setdefault('loss_scale', 'dynamic')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate linearly from ``auto_scale_lr.base_batch_size``.

    MMEngine scales it by ranks x images per rank. This includes neither the total
    batch size of a large-batch loop nor the micro-batches that MMEngine accumulates,
    so for these the learning rate in the config is scaled, and the base is then the
    total.

    Raises:
        ValueError: If ``auto_scale_lr.base_batch_size`` or the rate is missing, or the
            config of a run that was scaled would be scaled again.
    """
    settings = cfg.get('auto_scale_lr') or {}
    if 'base_batch_size' not in settings:
        raise ValueError(
            '--auto-scale-lr needs the batch size that the learning rate was chosen '
            'for: set auto_scale_lr = dict(base_batch_size=...) in the config'
        )
    total = cfg.train_cfg.get('total_batch_size')
    factor = cfg.optim_wrapper.get('accumulative_counts', 1)
    if total is None and factor != 1 and settings.get('enable'):
        raise ValueError(
            '--auto-scale-lr found auto_scale_lr.enable=True and '
            f'optim_wrapper.accumulative_counts={factor}: a run with this flag has '
            f'multiplied the lr of its config by {factor} already. Leave the flag out '
            'for its config; otherwise set auto_scale_lr.enable=False'
        )
    settings.enable = total is None
    if total is not None:
        factor = total / settings.base_batch_size
        settings.base_batch_size = total
    if factor != 1:
        optimizer = cfg.optim_wrapper.get('optimizer') or {}
        if 'lr' not in optimizer:
            raise ValueError(
                '--auto-scale-lr scales optim_wrapper.optimizer.lr, which the config '
                'does not set'
            )
        optimizer.lr *= factor


def prepare_launcher(cfg: Config, launcher: str) -> None:
    """Name the launcher in a config, and check it where there is no accelerator.

    Call it before the Runner is built: without an accelerator it starts the process
    group, since that of MMEngine needs CUDA.

    Raises:
        ValueError: If slurm or mpi is requested without an accelerator.
        RuntimeError: If torchrun has not set the environment variables.
    """
    cfg.launcher = launcher
    if launcher == 'none' or get_device() != 'cpu':
        return
    if launcher != 'pytorch':
        raise ValueError(
            f'Without an accelerator only --launcher pytorch works, got {launcher}'
        )
    variables = ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
    missing = [name for name in variables if name not in os.environ]
    if missing:
        raise RuntimeError(
            f'--launcher pytorch is for torchrun, which sets {", ".join(missing)}. '
            'Use tools/dist_train.sh, or leave --launcher out for one process'
        )
    dist.init_process_group('gloo')
    # A process that ends before gloo's threads can be aborted by them.
    atexit.register(end_process_group)


def end_process_group() -> None:
    """Destroy the process group, if it still exists."""
    if dist.is_initialized():
        dist.destroy_process_group()


def draw_predictions(cfg: Config, folder: str) -> None:
    """Draw the predictions of a test into a folder.

    A detector's hook creates it within the dated folder of the run. A segmenter's uses
    the folder of the visualizer, so there it is within the work folder.

    Raises:
        ValueError: If ``default_hooks`` has no visualization hook.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError(
            '--show-dir needs default_hooks.visualization in the config, for example '
            "dict(type='DetVisualizationHook')"
        )
    hook.draw = True
    if type_name(hook.type) == 'SegVisualizationHook':
        cfg.visualizer.save_dir = os.path.join(cfg.work_dir, folder)
    else:
        hook.test_out_dir = folder


def dump_predictions(cfg: Config, path: str) -> None:
    """Store the predictions of a test in a pickle file."""
    evaluators = cfg.test_evaluator
    if not isinstance(evaluators, list | tuple):
        evaluators = [evaluators]
    packages = [cfg.get('default_scope'), *(package_of(e.type) for e in evaluators)]
    # MMDetection's metric compresses masks.
    kind = 'mmdet.DumpDetResults' if 'mmdet' in packages else 'DumpResults'
    cfg.test_evaluator = [*evaluators, dict(type=kind, out_file_path=path)]
