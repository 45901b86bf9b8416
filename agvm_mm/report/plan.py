"""Plan of a large-batch run: what a config does on a cluster, without training it.

Nothing here needs a GPU: the model is built without memory. If the data are there, the
training images are counted.
"""

import copy
import io
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    MODELS,
    OPTIM_WRAPPERS,
    PARAM_SCHEDULERS,
    Registry,
    init_default_scope,
)
from torch import nn
from torch.overrides import TorchFunctionMode

from agvm_mm import cli, engine
from agvm_mm.estimators import check_replicas
from agvm_mm.method.modulator import Modulator
from agvm_mm.method.modules import has_sync_bn, trainable_by_module
from agvm_mm.optim.wrapper import AGVMOptimWrapper, check_one_optimizer
from agvm_mm.report import forecast
from agvm_mm.training.batch import (
    check_epoch,
    check_total_batch_size,
    check_update_settings,
    describe_scaling,
)
from agvm_mm.training.loops import ADVICE, LargeBatchMixin, check_ends
from agvm_mm.training.normalizers import MODES, Normalizers
from agvm_mm.training.variance_sync import (
    WARMUP,
    VarianceSyncHook,
    check_measures,
    check_one_hook,
)
from agvm_mm.training.warmup import (
    check_counts_iterations,
    end_of_warmup,
    learning_rates,
)
from agvm_mm.validation import (
    argument_names,
    check_arguments,
    check_number,
    check_optimizer_type,
    did_you_mean,
    resolve_type,
    type_name,
)

TRAIN_IMAGES = dict(coco=117_266, coco_unfiltered=118_287, ade20k=20_210)
"""Training images of each data set; 'coco' are those with annotations."""

COCO_FILES = ('instances_train2017.json', 'panoptic_train2017.json')
MOMENTS = dict(SGD=1, Adam=2, AdamW=2, BaselineLARS=1, BaselineLAMB=2, PMDLAMB=2)
"""Moments that an optimizer keeps for each parameter, with momentum, if it has any."""


class Plan:
    """Numbers of a run of a config on a cluster.

    Args:
        cfg: The config.
        gpus: Ranks.
        images_per_gpu: Images of a micro-batch on one rank; None for those of the
            config.
        images: Training images; None to count them, or without the data for those of
            COCO or ADE20K.
        noise: Measured noise scales of the model. Defaults to None.
        images_per_second: Throughput of all GPUs together. Defaults to None.

    Attributes:
        total: Images of an update.
        epoch: Updates of an epoch.
        epochs: Epochs of the run.
        updates: Updates of the run.
        moments: Moments of each parameter; None if not known.
        lr: Learning rate at each update.
        warmup: First update at which it is at its peak, within 1%.
        modules: Trainable parameters by module.
        hook: AGVM's hook, None without AGVM.
        schedule: AGVM's schedule, None without AGVM.
        measurements: Number of updates at which AGVM measures.
        settled: See :func:`~agvm_mm.report.forecast.settled_multipliers`.
        warnings: Questionable settings.

    Raises:
        Exception: Any error that the run itself would raise for a wrong setting.
        ValueError: If the config does not give the numbers, or the noise scales are of
            another model.
    """

    def __init__(
        self,
        cfg: Config,
        gpus: int,
        images_per_gpu: int | None,
        images: int | None,
        *,
        noise: forecast.NoiseScales | None = None,
        images_per_second: float | None = None,
    ) -> None:
        use_toolbox(cfg)
        needed = 'train_dataloader', 'train_cfg', 'optim_wrapper'
        missing = [name for name in needed if not cfg.get(name)]
        if missing:
            raise ValueError(f'the config does not train: no {", ".join(missing)}')
        check_loop(cfg)
        self.gpus = gpus
        loader = cfg.train_dataloader
        self.images_per_gpu = images_per_gpu or loader.get('batch_size')
        check_number('batch_size', self.images_per_gpu, low=1, integer=True)
        self.noise = noise
        self.images_per_second = images_per_second
        per_micro_batch = gpus * self.images_per_gpu
        batches = loader.get('num_batch_per_epoch')  # MMEngine's Runner cuts epochs.
        self.images = batches * per_micro_batch if batches else images
        self.images = self.images or training_images(cfg)
        accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
        default = per_micro_batch * accumulation
        self.total = cfg.train_cfg.get('total_batch_size', default)
        check_total_batch_size(self.total, gpus, self.images_per_gpu)
        self.micro_batches = self.total // per_micro_batch
        if 'total_batch_size' in cfg.train_cfg and not endless_samplers(cfg):
            check_epoch(self.total, math.ceil(self.images / gpus) * gpus)
        owners = loader, loader.get('batch_sampler') or {}
        drops = any(owner.get('drop_last') for owner in owners)
        epoch = math.ceil(self.images / gpus) / self.images_per_gpu
        epoch = math.floor(epoch) if drops else math.ceil(epoch)
        # Iterations of the loop: those of MMEngine's are micro-batches.
        epoch = math.ceil(epoch / (self.micro_batches // accumulation))
        self.epoch = math.ceil(epoch / accumulation)
        max_iters = cfg.train_cfg.get('max_iters')
        iterations = max_iters or cfg.train_cfg.max_epochs * epoch
        self.epochs = iterations / epoch
        self.updates = math.ceil(iterations / accumulation)
        model = build_model(cfg)
        by_module = trainable_by_module(model, cfg.optim_wrapper.get('modules'))
        self.modules = {
            name: sum(parameter.numel() for parameter in parameters)
            for name, parameters in by_module.items()
        }
        optim_wrapper, self.hook = build_agvm(cfg, model)
        self.optimizer = type(optim_wrapper.optimizer).__name__
        defaults = optim_wrapper.optimizer.defaults
        self.moments = MOMENTS.get(self.optimizer)
        if self.moments is not None:
            self.moments += bool(defaults.get('amsgrad'))
            self.moments *= defaults.get('momentum') != 0
        lr = float(defaults['lr'])
        scaling = cfg.get('auto_scale_lr')
        settings = scaling, lr, self.total, max_iters, accumulation
        self.warnings = [text for text in [describe_scaling(*settings)] if text]
        if scaling and scaling.get('enable'):  # As MMEngine does.
            lr *= per_micro_batch / scaling.base_batch_size
        self.lr = planned_rates(cfg, lr, iterations, epoch, accumulation)
        self.warmup = end_of_warmup(self.lr)
        wrapper = type_name((cfg.get('model_wrapper_cfg') or {}).get('type'))
        self.divides_parameters = wrapper == 'FullyShardedModel'
        self.divides_moments = self.divides_parameters or uses_zero(cfg.optim_wrapper)
        self.precision = 'mixed' if is_wrapper(cfg, AmpOptimWrapper) else 'float32'
        mu = modulator_settings(cfg.optim_wrapper)
        momentum = mu.pop('momentum')
        self.schedule, self.measurements = None, 0
        if is_wrapper(cfg, AGVMOptimWrapper) != (self.hook is not None):
            raise ValueError(
                'AGVMOptimWrapper and VarianceSyncHook go together, and only one is '
                'there'
            )
        if self.hook is not None:
            check_replicas(gpus, self.micro_batches, None)
            self._plan_measurements(self.hook, momentum)
        self.settled: dict[str, float] = {}
        if noise is None:
            return
        forecast.check_same_modules(noise, self.modules)
        self.settled = forecast.settled_multipliers(self.total, noise.modules, **mu)
        if noise.micro_batch not in (None, self.images_per_gpu):
            self.warnings.append(
                f'the noise scales are of replicas of {noise.micro_batch:,} images, '
                f'but a micro-batch has {self.images_per_gpu:,}: measure with '
                f'--images-per-replica {self.images_per_gpu} if losses are divided by '
                'counts of a micro-batch (--losses)'
            )
        if cfg.get('sync_bn') or has_sync_bn(model):
            self.warnings.append(
                'with SyncBN, noise scales that several ranks have measured are biased '
                'upwards or not resolved, and with them all that follows from them'
            )

    def _plan_measurements(self, hook: VarianceSyncHook, momentum: float) -> None:
        begin = self.warmup if hook.begin == WARMUP else hook.begin
        self.schedule = hook.make_schedule(begin)
        check_measures(self.schedule, self.updates)
        self.measurements = sum(map(self.schedule.is_measured, range(self.updates)))
        if not hook.act:
            return
        if begin < self.warmup:
            self.warnings.append(
                f'AGVM begins at update {begin:,}, within the warm-up of '
                f'{self.warmup:,}'
            )
        reach = 1 - momentum**self.measurements
        if reach < 0.5:
            advice = 'lower the interval (the replicas estimator makes that cheap)'
            if hook.interval == 1:
                advice = 'lower momentum, or train longer'
            self.warnings.append(
                f'{self.measurements:,} measurements move mu only {reach:.0%} of the '
                f'distance to its target; {advice}'
            )


def check_loop(cfg: Config) -> None:
    """Check ``train_cfg`` as the loop would.

    Raises:
        KeyError: If there is no such loop.
        TypeError: If it has no such argument.
        ValueError: If the config accumulates twice, the sampler never ends an epoch,
            or MMEngine would scale the learning rate to another batch size.
    """
    settings = dict(cfg.train_cfg)
    settings.pop('_scope_', None)
    kind = settings.pop('type', None)
    if kind is None:  # MMEngine chooses by `by_epoch`.
        return
    loop, name = resolve_type(kind, LOOPS), type_name(kind)
    if loop is None:
        near = did_you_mean(name, LOOPS.module_dict)
        raise KeyError(f'train_cfg.type={kind!r} is not registered.{near}')
    known = argument_names(loop) - {'runner', 'dataloader'}
    check_arguments(name, settings, known, advice=ADVICE)
    if issubclass(loop, LargeBatchMixin):
        if 'total_batch_size' not in settings:
            raise ValueError(f'train_cfg: {name} needs total_batch_size')
        total = settings['total_batch_size']
        counts = cfg.optim_wrapper.get('accumulative_counts', 1)
        check_update_settings(name, total, counts, cfg.get('auto_scale_lr'))
        Normalizers(settings.get('normalizers', MODES[0]))
        for sampler in endless_samplers(cfg) if loop.counts_epochs else ():
            check_ends(name, sampler, endless=True)


def endless_samplers(cfg: Config) -> list[type]:
    """Return the samplers of a config that never end an epoch."""
    owners = map(cfg.train_dataloader.get, ('batch_sampler', 'sampler'))
    kinds = (resolve_type((each or {}).get('type'), DATA_SAMPLERS) for each in owners)
    return [each for each in kinds if engine.is_endless(each)]


def training_images(cfg: Config) -> int:
    """Count the training images; without the data, return those of COCO or ADE20K.

    Raises:
        ValueError: If the files of another data set are not there.
    """
    dataset = cfg.train_dataloader.dataset
    try:
        with quiet():
            built = DATASETS.build(dataset)
        # Some draw another number of images.
        context, sampler = dict(dataset=built, seed=0), cfg.train_dataloader.sampler
        return len(DATA_SAMPLERS.build(sampler, default_args=context))
    except (AssertionError, OSError) as error:  # MMSegmentation asserts some files.
        missing = error
    kind, name = type_name(dataset.type), None
    file = str(dataset.get('ann_file', '')).rpartition('/')[2]
    if file in COCO_FILES:
        filters = (dataset.get('filter_cfg') or {}).get('filter_empty_gt')
        name = 'coco' if filters else 'coco_unfiltered'
    elif kind == 'ADE20KDataset':
        name = 'ade20k'
    if name is None or dataset.get('indices') is not None:
        what = f'{kind}, {file}' if file else kind
        raise ValueError(
            f'the size of {what} is not known; give it by --images N ({missing})'
        )
    return TRAIN_IMAGES[name]


class _LinspaceOnCPU(TorchFunctionMode):
    """Mode in which ``torch.linspace`` has values: Swin reads its drop rates."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        device = dict(device='cpu') if func is torch.linspace else {}
        return func(*args, **device | (kwargs or {}))


def use_toolbox(cfg: Config) -> None:
    """Make the names of a config's toolbox known to MMEngine."""
    scope = cfg.get('default_scope', 'mmengine')
    if scope in ('mmdet', 'mmseg'):
        import_module(f'{scope}.models')
    # As the Runner: None in configs in pure Python, where each toolbox finds its own.
    if scope is not None:
        init_default_scope(scope)


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config on the meta device, which takes no memory."""
    use_toolbox(cfg)
    with torch.device('meta'), _LinspaceOnCPU():
        # MMSegmentation moves `pretrained` into the settings of the backbone.
        model = MODELS.build(copy.deepcopy(cfg.model))
    model.train()  # A detector with a teacher returns nothing.
    return model


def planned_rates(
    cfg: Config, lr: float, iterations: int, epoch: int, accumulation: int
) -> list[float]:
    """Compute the learning rate at each update with the schedulers of the config."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    settings = cfg.get('param_scheduler') or []
    context = dict(optimizer=optimizer, epoch_length=epoch)
    # MMEngine's loops without epochs have one.
    epochs = cfg.train_cfg.get('max_epochs', 1)
    schedulers = [
        PARAM_SCHEDULERS.build(
            # As the Runner does.
            dict(end=epochs if one.get('by_epoch', True) else iterations) | dict(one),
            default_args=context,
        )
        for one in (settings if isinstance(settings, list | tuple) else [settings])
    ]
    loop = resolve_type(cfg.train_cfg.get('type'), LOOPS)
    if loop and issubclass(loop, LargeBatchMixin) and not loop.counts_epochs:
        # The Runner has one by default.
        hooks = {'checkpoint': dict(type='CheckpointHook', interval=1)}
        hook = (hooks | (cfg.get('default_hooks') or {}))['checkpoint']
        built = [HOOKS.build(hook)] if hook else []
        check_counts_iterations(loop.__name__, schedulers, built)
    return learning_rates(
        schedulers,
        optimizer.param_groups,
        iterations=iterations,
        epoch=iterations // epochs,
        accumulation=accumulation,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what constructors of optimizers and datasets log and print."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def build_agvm(
    cfg: Config, model: nn.Module
) -> tuple[OptimWrapper, VarianceSyncHook | None]:
    """Build optimizer wrapper and AGVM's hook, if there is one; they check settings.

    Raises:
        Exception: Any error that the run would raise.
    """
    settings = in_float32(cfg.optim_wrapper)
    check_optimizer_type(settings.get('optimizer'))
    with quiet():
        wrapper = build_optim_wrapper(model, settings)
    check_one_optimizer('tools/plan.py', wrapper)
    hooks = variance_hooks(cfg)
    check_one_hook(len(hooks))
    hook = HOOKS.build(hooks[0]) if hooks else None
    if hook is not None and isinstance(wrapper, AGVMOptimWrapper):
        wrapper.make_agvm(model, act=hook.act)
    return wrapper, hook


def modulator_settings(optim_wrapper: ConfigDict) -> dict[str, Any]:
    """Return the settings of the multipliers in a config, or their defaults."""
    defaults = Modulator.__init__.__kwdefaults__
    return {name: optim_wrapper.get(name, value) for name, value in defaults.items()}


def in_float32(settings: ConfigDict) -> ConfigDict:
    """Return settings of an optimizer wrapper that one process builds without a GPU.

    Without mixed precision, and with the plain optimizer in place of ZeRO-1.
    """
    settings = copy.deepcopy(settings)
    if uses_zero(settings):
        settings.optimizer.type = settings.optimizer.pop('optimizer_type')
        settings.optimizer.pop('parameters_as_bucket_view', None)
    for full, mixed in cli.AMP_WRAPPERS.items():
        if type_name(settings.get('type')) == mixed:
            settings.type = full
            settings.pop('loss_scale', None)
            settings.pop('dtype', None)
    return settings


def uses_zero(optim_wrapper: ConfigDict) -> bool:
    """Return whether moments are divided over the ranks by ZeRO-1."""
    optimizer = optim_wrapper.get('optimizer') or {}
    return type_name(optimizer.get('type')) == 'ZeroRedundancyOptimizer'


def variance_hooks(cfg: Config) -> list[ConfigDict]:
    """Return the settings of each VarianceSyncHook of a config."""
    hooks = [
        *(cfg.get('default_hooks') or {}).values(),
        *(cfg.get('custom_hooks') or []),
    ]
    return [
        hook
        for hook in hooks
        if isinstance(hook, dict) and is_kind(hook.get('type'), HOOKS, VarianceSyncHook)
    ]


def is_wrapper(cfg: Config, expected: type) -> bool:
    """Return whether the optimizer wrapper of a config is of a class."""
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    return is_kind(kind, OPTIM_WRAPPERS, expected)


def is_kind(kind: Any, registry: Registry, expected: type) -> bool:
    """Return whether the type in a config is a class or inherits from it."""
    found = resolve_type(kind, registry)
    return isinstance(found, type) and issubclass(found, expected)


def describe(plan: Plan) -> str:
    """Format a plan as a block of text."""
    size = 4 * sum(plan.modules.values())
    own = format_bytes(size / (plan.gpus if plan.divides_parameters else 1))
    moments = f'not known for {plan.optimizer}'
    if plan.moments is not None:
        ranks = plan.gpus if plan.divides_moments else 1
        moments = format_bytes(size * plan.moments / ranks)
    lines = [
        f'batch       {plan.total:,} images = {plan.gpus:,} GPU(s) x '
        f'{plan.images_per_gpu:,} images x {plan.micro_batches:,} micro-batch(es)',
        f'updates     {plan.epoch:,} in an epoch of {plan.images:,} images, '
        f'{plan.updates:,} in all, {plan.epochs:,.1f} epochs',
        f'precision   {plan.precision}',
        f'lr          {format_rates(plan.lr)}',
    ]
    for module, count in plan.modules.items():
        lines.append(f'module      {module}: {count:,} trainable parameters')
    lines.append(
        f'memory      on each GPU, float32: parameters {own}, gradient {own}, moments '
        f'{moments}; plus activations'
    )
    hook = plan.hook
    if hook is not None:
        end = '' if hook.end is None else f' to {hook.end:,}'
        acts = '' if hook.act else 'only measures, '
        lines.append(
            f'AGVM        {acts}from update {plan.schedule.begin:,}{end}, every '
            f'{hook.interval}: {plan.measurements:,} measurements by {hook.estimator}'
        )
    if plan.noise is not None:
        lines += forecast.describe_noise(plan.noise, plan.total)
    if plan.settled:
        acts = hook is not None and hook.act
        lines.append(forecast.describe_multipliers(plan.settled, acts=acts))
    if plan.images_per_second is not None:
        hours = plan.updates * plan.total / plan.images_per_second / 3600
        noise_scale = plan.noise and plan.noise.whole
        run = plan.total, plan.updates, hours, plan.gpus
        lines += forecast.describe_time(*run, noise_scale)
    lines += [f'warning     {text}' for text in plan.warnings]
    return '\n'.join(lines)


def format_bytes(count: float) -> str:
    """Format a number of bytes with its unit."""
    for unit in ('B', 'kB', 'MB'):
        if count < 1000:
            return f'{count:.3g} {unit}'
        count /= 1000
    return f'{count:.3g} GB'


def format_rates(rates: list[float]) -> str:
    """Format the learning rates at the updates where their slope changes."""
    last = len(rates) - 1
    signs = np.sign(np.diff(rates))
    points = [0, *(np.flatnonzero(np.diff(signs)) + 1), last]
    if len(points) > 12:
        points = [round(i * last / 10) for i in range(11)]
    return ', '.join(f'{rates[p]:.4g} at {p:,}' for p in dict.fromkeys(points))
