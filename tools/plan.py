"""What a large-batch run will do, before a cluster is booked.

    python tools/plan.py CONFIG --gpus 64 --images-per-gpu 16

Prints updates, accumulation, the learning rate over the run, when AGVM begins and
how far it can come, memory and traffic of an update; warns of what cannot work and
then exits with 1. Trains nothing and needs neither the data nor a GPU.
"""

import argparse
import copy
import math
import sys
from dataclasses import dataclass, field

import torch
from mmengine.config import Config, DictAction
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    HOOKS,
    LOOPS,
    MODELS,
    PARAM_SCHEDULERS,
    init_default_scope,
)
from torch import nn
from torch.overrides import TorchFunctionMode

from agvm_mm import cli
from agvm_mm.validation import argument_names, check_arguments, did_you_mean
from agvm_mm.hooks import VarianceSyncHook
from agvm_mm.loops import LargeBatchMixin, refuse_accumulation, refuse_auto_scaling
from agvm_mm.modules import assign_modules
from agvm_mm.modulator import MeasurementSchedule

# Training images. Of COCO those with annotations, known by the annotation file.
COCO_IMAGES = 117_266
COCO_FILES = ('instances_train2017.json', 'panoptic_train2017.json')
ADE20K_IMAGES = 20_210
# Moments that an optimizer keeps for each parameter.
MOMENTS = {
    'SGD': 1,
    'Adam': 2,
    'AdamW': 2,
    'BaselineLARS': 1,
    'BaselineLAMB': 2,
    'PMDLAMB': 2,
}


@dataclass
class Plan:
    """A run in numbers.

    Args:
        images (int): Training images.
        total (int): Images of an update.
        gpus (int): Ranks.
        images_per_gpu (int): Images of a micro-batch on one rank.
        epoch (int): Updates of an epoch.
        updates (int): Updates of the run.
        lr (list[float]): Learning rate at each update.
        modules (dict[str, int]): Trainable parameters by module.
        optimizer (str): Kind of optimizer.
        schedule (MeasurementSchedule, optional): AGVM's. Defaults to None, no AGVM.
        estimator (str): AGVM's. Defaults to 'halves'.
        momentum (float): Of the multipliers. Defaults to 0.97.
        warnings (list[str]): What deserves a second look.
        problems (list[str]): What cannot work.
    """

    images: int
    total: int
    gpus: int
    images_per_gpu: int
    epoch: int
    updates: int
    lr: list[float]
    modules: dict[str, int]
    optimizer: str
    schedule: MeasurementSchedule | None = None
    estimator: str = 'halves'
    momentum: float = 0.97
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def micro_batches(self) -> int:
        """int: Micro-batches of an update on each rank, rounded down."""
        return self.total // (self.gpus * self.images_per_gpu)

    @property
    def measurements(self) -> int:
        """int: Updates at which AGVM measures."""
        if self.schedule is None:
            return 0
        return sum(map(self.schedule.is_measured, range(self.updates)))

    @property
    def gradient_bytes(self) -> int:
        """int: Size of the gradient in float32."""
        return 4 * sum(self.modules.values())


def training_images(cfg: Config) -> int:
    """Images of the training set, if it is that of COCO or ADE20K.

    Raises:
        ValueError: If it is another one.
    """
    dataset = cfg.train_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if dataset.type == 'ADE20KDataset':
        return ADE20K_IMAGES
    file = str(dataset.get('ann_file', '')).rpartition('/')[2]
    if file in COCO_FILES:
        return COCO_IMAGES
    what = f'{dataset.type}, {file}' if file else dataset.type
    raise ValueError(f'the size of {what} is not known; give it by --images N')


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, without memory."""
    launch_scope(cfg)
    with torch.device('meta'), NumbersOnCPU():
        return MODELS.build(cfg.model).train()


def trainable_parameters(cfg: Config, model: nn.Module) -> dict[str, int]:
    """Trainable parameters of a model by module."""
    module_of = assign_modules(model, cfg.optim_wrapper.get('modules'))
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module = module_of[name]
            counts[module] = counts.get(module, 0) + parameter.numel()
    return counts


def check_loop(cfg: Config) -> None:
    """Check what ``train_cfg`` says, as the loop would.

    Raises:
        KeyError: If there is no such loop.
        TypeError: If it has no such argument.
        ValueError: If the config accumulates twice, or MMEngine would scale the
            learning rate to another batch.
    """
    settings = dict(cfg.train_cfg)
    settings.pop('_scope_', None)
    kind = settings.pop('type', None)
    if kind is None:  # MMEngine chooses by `by_epoch`.
        return
    loop = LOOPS.get(kind)
    if loop is None:
        near = did_you_mean(kind, LOOPS.module_dict)
        raise KeyError(f'train_cfg.type={kind!r} is not registered.{near}')
    known = argument_names(loop) - {'runner', 'dataloader'}
    check_arguments(kind, settings, known)
    if issubclass(loop, LargeBatchMixin):
        if 'total_batch_size' not in settings:
            raise ValueError(f'train_cfg: {kind} needs total_batch_size')
        refuse_accumulation(
            kind,
            settings['total_batch_size'],
            cfg.optim_wrapper.get('accumulative_counts', 1),
        )
        refuse_auto_scaling(cfg.get('auto_scale_lr'), settings['total_batch_size'])


def build_settings(cfg: Config, model: nn.Module) -> VarianceSyncHook | None:
    """Build what a run builds before it trains: it checks its settings by itself.

    Args:
        cfg (Config): The config.
        model (nn.Module): Its model.

    Returns:
        VarianceSyncHook or None: AGVM's hook, if there is one.

    Raises:
        Exception: Whatever the run would raise.
    """
    settings = copy.deepcopy(cfg.optim_wrapper)
    # Mixed precision asks for a GPU that need not be here.
    for full, mixed in cli.AMP_WRAPPERS.items():
        if settings.get('type') == mixed:
            settings.type = full
            for name in ('loss_scale', 'dtype'):
                settings.pop(name, None)
    build_optim_wrapper(model, settings)
    hooks = [
        HOOKS.build(hook)
        for hook in cfg.get('custom_hooks') or []
        if hook.type == 'VarianceSyncHook'
    ]
    return hooks[0] if hooks else None


class NumbersOnCPU(TorchFunctionMode):
    """Lets Swin read its drop rates out of a tensor while parameters have no memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


def launch_scope(cfg: Config) -> None:
    """Import the toolbox of a config, so that its names are registered."""
    scope = cfg.get('default_scope', 'mmengine')
    if scope == 'mmdet':
        import mmdet.models  # noqa: F401
    elif scope == 'mmseg':
        import mmseg.models  # noqa: F401
    init_default_scope(scope)


def learning_rates(
    cfg: Config, epoch: int, updates: int, accumulation: int
) -> list[float]:
    """The learning rate at each update, from the config's own schedulers.

    Args:
        cfg (Config): The config.
        epoch (int): Updates of an epoch.
        updates (int): Updates of the run.
        accumulation (int): MMEngine's accumulative_counts: its schedules step at each
            of so many iterations of an update. 1 with a large-batch loop.
    """
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=float(cfg.optim_wrapper.optimizer.lr))
    settings = cfg.get('param_scheduler') or []
    schedulers = [
        PARAM_SCHEDULERS.build(
            dict(one),
            default_args=dict(optimizer=optimizer, epoch_length=epoch * accumulation),
        )
        for one in (settings if isinstance(settings, list | tuple) else [settings])
    ]
    rates = []
    for update in range(1, updates + 1):
        rates.append(optimizer.param_groups[0]['lr'])
        # PyTorch's own check of the order of calls; nothing is trained here.
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch:
                for _ in range(accumulation):
                    scheduler.step()
            elif update % epoch == 0:
                scheduler.step()
    return rates


def make_plan(
    cfg: Config, gpus: int, images_per_gpu: int | None, images: int | None
) -> Plan:
    """Work a config out for a cluster.

    Args:
        cfg (Config): The config.
        gpus (int): Ranks.
        images_per_gpu (int, optional): The config's own if None.
        images (int, optional): Training images; known for COCO and ADE20K.

    Raises:
        ValueError: If the config says too little.
        Exception: What the run itself would raise, if a setting is wrong.
    """
    check_loop(cfg)
    images = images or training_images(cfg)
    per_gpu = images_per_gpu or cfg.train_dataloader.batch_size
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    total = cfg.train_cfg.get('total_batch_size', gpus * per_gpu * accumulation)
    epoch = math.ceil(images / total)
    if 'max_epochs' in cfg.train_cfg:
        updates = cfg.train_cfg.max_epochs * epoch
    else:
        updates = cfg.train_cfg.max_iters // accumulation
    model = build_model(cfg)
    plan = Plan(
        images=images,
        total=total,
        gpus=gpus,
        images_per_gpu=per_gpu,
        epoch=epoch,
        updates=updates,
        lr=learning_rates(cfg, epoch, updates, accumulation),
        modules=trainable_parameters(cfg, model),
        optimizer=cfg.optim_wrapper.optimizer.type,
    )
    hook = build_settings(cfg, model)
    if hook is not None:
        plan.schedule = hook.schedule
        plan.estimator = hook.estimator
        plan.momentum = cfg.optim_wrapper.get('momentum', 0.97)
    examine(plan, cfg)
    return plan


def examine(plan: Plan, cfg: Config) -> None:
    """Note what cannot work and what deserves a second look."""
    unit = plan.gpus * plan.images_per_gpu
    if plan.total % unit:
        nearest = [unit * n for n in (plan.total // unit, plan.total // unit + 1) if n]
        plan.problems.append(
            f'total_batch_size={plan.total} is not a multiple of {plan.gpus} x '
            f'{plan.images_per_gpu} = {unit}; nearest: '
            f'{" and ".join(map(str, nearest))}'
        )
    wrapper_is_agvm = cfg.optim_wrapper.get('type', '').startswith('AGVM')
    if wrapper_is_agvm != (plan.schedule is not None):
        plan.problems.append(
            'AGVMOptimWrapper and VarianceSyncHook go together, and only one is there'
        )
    peak = max(plan.lr)
    warmup = next(i for i, rate in enumerate(plan.lr) if rate > 0.99 * peak)
    if warmup > plan.updates / 4:
        plan.warnings.append(
            f'the warm-up takes {warmup} of {plan.updates} updates, more than a quarter'
        )
    if plan.schedule is None:
        return
    if plan.gpus == 1 and plan.micro_batches == 1:
        plan.problems.append(
            'one rank and one micro-batch: AGVM has nothing to compare'
        )
    if plan.schedule.begin >= plan.updates:
        plan.problems.append(
            f'AGVM begins at update {plan.schedule.begin}, the run ends after '
            f'{plan.updates}'
        )
        return
    if plan.schedule.begin < warmup:
        plan.warnings.append(
            f'AGVM begins at update {plan.schedule.begin}, within the warm-up of '
            f'{warmup}'
        )
    reach = 1 - plan.momentum**plan.measurements
    if reach < 0.5:
        plan.warnings.append(
            f'{plan.measurements} measurements take mu only {reach:.0%} of the way; '
            'lower the interval (the replicas estimator makes that cheap)'
        )


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ('B', 'kB', 'MB', 'GB'):
        if count < 1000 or unit == 'GB':
            return f'{count:.3g} {unit}'
        count /= 1000
    raise AssertionError


def describe(plan: Plan) -> str:
    """The plan as text."""
    gradient = plan.gradient_bytes
    moments = MOMENTS.get(plan.optimizer)
    state = size(gradient * moments) if moments else f'not known for {plan.optimizer}'
    lines = [
        f'batch       {plan.total} images = {plan.gpus} GPU(s) x '
        f'{plan.images_per_gpu} images x {plan.micro_batches} micro-batch(es)',
        f'updates     {plan.epoch} in an epoch of {plan.images:,} images, '
        f'{plan.updates:,} in all',
        'lr          ' + lr_line(plan.lr),
    ]
    for module, count in plan.modules.items():
        lines.append(f'module      {module}: {count:,} trainable parameters')
    lines += [
        f'memory      on each GPU, float32: parameters {size(gradient)}, gradient '
        f'{size(gradient)}, moments {state}; activations come on top',
        f'traffic     plain update: {size(gradient)} reduced',
    ]
    if plan.schedule is not None:
        if plan.estimator == 'halves':
            extra = f'{size(gradient)} more reduced, one copy of each bucket in flight'
        else:
            extra = f'{2 * len(plan.modules)} scalars more reduced'
        if plan.gpus == 1:
            extra = f'nothing reduced, one copy of the gradient ({size(gradient)})'
        end = plan.schedule.end
        lines += [
            f'            measured update: {extra}',
            f'AGVM        from update {plan.schedule.begin:,}'
            + (f' to {end:,}' if end is not None else '')
            + f', every {plan.schedule.interval}: {plan.measurements:,} measurements '
            f'by {plan.estimator}',
            f'            mu goes half of its way in '
            f'{half_way(plan.momentum)} measurement(s)',
        ]
    lines += [f'warning     {text}' for text in plan.warnings]
    lines += [f'PROBLEM     {text}' for text in plan.problems]
    return '\n'.join(lines)


def half_way(momentum: float) -> int:
    """Measurements after which mu has gone half of the way to a constant target."""
    return math.ceil(math.log(0.5) / math.log(momentum)) if momentum > 0.5 else 1


def lr_line(rates: list[float]) -> str:
    """The learning rate wherever it changes its direction or ends a plateau."""
    points = [0]
    for update in range(1, len(rates) - 1):
        before = rates[update] - rates[update - 1]
        after = rates[update + 1] - rates[update]
        straight = before * after > 0 or before == after == 0
        if not straight:
            points.append(update)
    points.append(len(rates) - 1)
    if len(points) > 12:
        points = [round(i * (len(rates) - 1) / 10) for i in range(11)]
    return ', '.join(f'{rates[p]:.4g} at {p}' for p in dict.fromkeys(points))


def parse_args(argv=None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='path of the config file')
    parser.add_argument('--gpus', type=int, required=True, help='ranks in all')
    parser.add_argument(
        '--images-per-gpu', type=int, help="the config's batch_size if not given"
    )
    parser.add_argument(
        '--images',
        type=int,
        help='size of the training set; known for the files of COCO and for ADE20K',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override those of the config, as key=value',
    )
    args = parser.parse_args(argv)
    for name in ('gpus', 'images_per_gpu', 'images'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1')
    return args


def main(argv=None) -> int:
    """Print the plan; returns the exit status."""
    args = parse_args(argv)
    try:
        cfg = cli.load_config(args.config, args.cfg_options)
        plan = make_plan(cfg, args.gpus, args.images_per_gpu, args.images)
    except Exception as error:
        # Whatever the run would die of; KeyError shows its message in quotes.
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f'PROBLEM     {text}' if str(error) else f'PROBLEM     {error!r}')
        return 1
    print(describe(plan))
    return int(bool(plan.problems))


if __name__ == '__main__':
    sys.exit(main())
