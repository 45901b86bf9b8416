"""Gradients of many micro-batches of a config's training set, without a step.

Each rank runs its share of the replicas forward and backward and keeps one sum of
gradients for each block in the memory of its host.
"""

import io
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    redirect_stdout,
)
from itertools import islice
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import (
    all_gather,
    get_comm_device,
    get_rank,
    get_world_size,
    init_dist,
)
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, Runner, set_random_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from agvm_mm import cli
from agvm_mm.engine import is_endless
from agvm_mm.estimators.preconditioner import Preconditioner, build_preconditioner
from agvm_mm.estimators.reductions import norms
from agvm_mm.method.modulator import Modulator
from agvm_mm.method.modules import has_sync_bn, trainable_by_module
from agvm_mm.optim.wrapper import check_one_optimizer
from agvm_mm.report.gradient_noise.intervals import GradientSums, divide_replicas
from agvm_mm.report.plan import in_float32, modulator_settings, quiet, use_toolbox
from agvm_mm.training.loading import allow_runner_checkpoints
from agvm_mm.training.loss_counts import Plan, intercept
from agvm_mm.training.normalizers import (
    MODES,
    CountingWrapper,
    Normalizers,
    count_normalizers,
    counted,
    find_normalizers,
)
from agvm_mm.training.summary import repeated_images
from agvm_mm.validation import check_number, type_name

# Elements of a parameter whose inner products are computed at a time in float64.
PIECE = 2**18


class Setup:
    """All that a measurement needs, built and checked before the work.

    Args:
        cfg: Any config that trains; changed in place.
        checkpoint: Path or address of the weights.
        images: Images to run, rounded down to whole blocks of replicas.
        images_per_replica: Defaults to None, the batch size of the config.
        launcher: Program that started the ranks. Defaults to 'none'.

    Attributes:
        preconditioner: Turns a gradient into the measured quantity.
        gradient: Name of the measured quantity.
        notes: What a reader of the result must know.
        found: Normalizers that all replicas share, or None if each has its own.
        batches: Yields this rank's replicas.
        images: Images of all replicas.
        blocks: Number of blocks of all ranks.
        block_size: Replicas of each, a power of two.

    Raises:
        FileNotFoundError: If the checkpoint or the data do not exist.
        TypeError: If the data have no fixed batches, or there are several optimizers.
        ValueError: If the checkpoint is of another model or optimizer, there are too
            few images or more than the training set has, or there is no such anchor or
            setting of ``normalizers``.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        *,
        images: int,
        images_per_replica: int | None = None,
        launcher: str = 'none',
    ) -> None:
        start_ranks(cfg, launcher)
        # Each rank augments and samples with its own random numbers.
        set_random_seed(0, diff_rank_seed=True)
        size = images_per_replica or cfg.train_dataloader.get('batch_size')
        check_number('images per replica', size, low=1, integer=True)
        ranks = get_world_size()
        needed = max(2, ranks)
        if images < needed * size:
            raise ValueError(
                f'--images {images} make {images // size} replica(s) of {size} images, '
                f'and {ranks} rank(s) need at least {needed} replicas, {needed * size} '
                'images; raise --images or lower --images-per-replica'
            )
        self.blocks, self.block_size = divide_replicas(images // size, ranks)
        replicas = self.blocks * self.block_size
        self.images_per_replica, self.images = size, replicas * size
        self.model = build_model(cfg)
        settings = cfg.get('optim_wrapper') or {}
        self.by_module = trainable_by_module(self.model, settings.get('modules'))
        modulator = Modulator(list(self.by_module), **modulator_settings(settings))
        self.anchor, self.ratio_bounds = modulator.anchor, modulator.ratio_bounds
        saved = load_weights(self.model, checkpoint)
        self.model.to(get_device())
        self.preconditioner, note = make_preconditioner(
            cfg, self.model, saved, checkpoint
        )
        self.notes = [f'{note}: plain gradient.'] if note else []
        rescales = self.preconditioner.rescales
        self.gradient = 'gradient / (sqrt(v) + eps)' if rescales else 'gradient'
        if ranks > 1 and has_sync_bn(self.model):
            self.notes.append(
                'SyncBN couples the replicas of the ranks: noise scales are biased. '
                'Measure on one process, where it becomes BN.'
            )
        mode = (cfg.get('train_cfg') or {}).get('normalizers', MODES[0])
        Normalizers(mode)  # Refuses another name.
        self.found = None if mode == MODES[0] else find_normalizers(self.model, mode)
        if self.found and self.found.per_image:
            self.notes.append(
                f'train_cfg.normalizers={mode!r}: the losses of all replicas are '
                'divided by the same normalizers of an image, their means over all.'
            )
        if self.found and self.found.unreached:
            names = ', '.join(self.found.unreached)
            self.notes.append(f'train_cfg.normalizers={mode!r} does not reach {names}.')
        self.batches = load_batches(cfg, replicas, size)


def start_ranks(cfg: Config, launcher: str) -> None:
    """Start the process group of a launcher, on CPUs or accelerators."""
    cli.prepare_launcher(cfg, launcher)
    if launcher != 'none' and not torch.distributed.is_initialized():
        init_dist(launcher, **(cfg.get('env_cfg') or {}).get('dist_cfg', {}))
    use_toolbox(cfg)


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config in training mode."""
    model = MODELS.build(cfg.model)
    # As the Runner, and where SyncBN cannot run.
    if get_world_size() == 1 or get_device() == 'cpu':
        model = revert_sync_batchnorm(model)
    model.train()  # A detector with a teacher returns nothing.
    return model


def load_weights(model: nn.Module, path: str) -> Mapping[str, Any]:
    """Load a checkpoint into a model and return it.

    Raises:
        ValueError: If it is not a checkpoint of this model.
    """
    allow_runner_checkpoints()
    # MMEngine prints where it loads from.
    with redirect_stdout(io.StringIO()):
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    # EMAHook saves its averages as the weights, and those that are trained here.
    trained = dict(checkpoint.get('ema_state_dict', {}))
    trained.pop('steps', None)
    weights = trained or checkpoint.get('state_dict', checkpoint)
    weights = {name.removeprefix('module.'): value for name, value in weights.items()}
    # The first releases of MMEngine also saved the mean and std of the images.
    for name in weights.keys() - model.state_dict().keys():
        if 'data_preprocessor.' in name:
            del weights[name]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        _, *lines = str(error).splitlines()
        found = '; '.join(textwrap.shorten(line, 200) for line in lines[:3])
        raise ValueError(f'{path} is not a checkpoint of this model: {found}') from None
    return checkpoint


def make_preconditioner(
    cfg: Config, model: nn.Module, checkpoint: Mapping[str, Any], path: str
) -> tuple[Preconditioner, str]:
    """Return what rescales gradients as the optimizer does, or why nothing does.

    Raises:
        TypeError: If the config has several optimizers.
        ValueError: If the checkpoint was saved with another optimizer.
    """
    if not cfg.get('optim_wrapper'):
        return Preconditioner(), 'The config has no optimizer'
    settings = in_float32(cfg.optim_wrapper)
    with quiet():
        wrapper = build_optim_wrapper(model, settings)
    check_one_optimizer('tools/noise_scale.py', wrapper)
    optimizer, name = wrapper.optimizer, type_name(type(wrapper.optimizer))
    try:
        preconditioner = build_preconditioner(optimizer)
    except TypeError:
        return Preconditioner(), f'{name} steps by trust ratios or its own rules'
    if not preconditioner.rescales:
        return preconditioner, ''
    saved = checkpoint.get('optimizer')
    if not saved or not saved.get('state'):
        return Preconditioner(), (
            'The checkpoint has no optimizer state, so the gradient is not divided by '
            f"{name}'s sqrt(v) + eps"
        )
    if not any('exp_avg_sq' in each for each in saved['state'].values()):
        raise ValueError(
            f'{path} has the state of another optimizer than {name}: no exp_avg_sq'
        )
    try:
        optimizer.load_state_dict(saved)
    except ValueError as error:
        raise ValueError(
            f'{path}: its optimizer state has other parameter groups than the config '
            f'({error}); use the config that it was trained with'
        ) from error
    return preconditioner, ''


def load_batches(cfg: Config, replicas: int, images_per_replica: int) -> DataLoader:
    """Build a dataloader of this rank's replicas, drawn by the config's own samplers.

    Raises:
        TypeError: If the data set has no indices.
        ValueError: If it has fewer images.
    """
    settings = cfg.train_dataloader.copy()
    settings['batch_size'] = images_per_replica
    loader = Runner.build_dataloader(settings, seed=0)
    if loader.batch_sampler is None:
        raise TypeError(
            f'{type(loader.dataset).__name__} has no batch sampler that draws indices; '
            'use a map-style dataset'
        )
    images, found = replicas * images_per_replica, len(loader.dataset)
    sampler = getattr(loader.batch_sampler, 'sampler', None)
    if sampler is not None and not is_endless(loader.batch_sampler):
        # That of a data set of videos draws their frames.
        found = len(sampler) * get_world_size() - repeated_images(loader)
    if images > found:
        raise ValueError(f'--images {images}, but the training set has {found} images')
    count = replicas // get_world_size()
    whole = (list(b) for b in loader.batch_sampler if len(b) == images_per_replica)
    indices = list(islice(whole, count))
    if len(indices) < count:
        what = type(loader.batch_sampler).__name__
        raise ValueError(
            f'{what} draws only {len(indices)} full batches of {images_per_replica} '
            f'images on rank {get_rank()}, and --images {images} needs {count}; lower '
            '--images'
        )
    return DataLoader(
        loader.dataset,
        batch_sampler=indices,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        pin_memory=loader.pin_memory,
        multiprocessing_context=loader.multiprocessing_context,
    )


class BackwardOnly:
    """Optimizer wrapper as a model's ``train_step`` sees it, without any step."""

    def optim_context(self, model: nn.Module) -> AbstractContextManager:
        """Change nothing: the forward pass is in float32."""
        return nullcontext()

    def update_params(self, loss: Tensor, *args: object, **kwargs: object) -> None:
        """Back-propagate."""
        loss.backward()


@contextmanager
def replicas_of(setup: Setup) -> Iterator[Iterable]:
    """Give the replicas of this rank, whose losses share their normalizers if set."""
    found, batches = setup.found, setup.batches
    if not found or not found.per_image:
        yield batches
        return
    sizes = [setup.images_per_replica] * len(batches)
    wrapper = CountingWrapper(BackwardOnly())
    plan = Plan(found, count_normalizers(setup.model, found, wrapper, batches, sizes))
    with intercept(found.modules_of(setup.model), plan):
        yield counted(plan, batches, sizes)


def gradients_of(
    setup: Setup, batches: Iterable, advance: Callable[[], None]
) -> Iterator[list[Tensor]]:
    """Yield the rescaled gradients of each replica of this rank; see :func:`measure`.

    Raises:
        FloatingPointError: If a gradient is not finite.
    """
    wrapper, model = BackwardOnly(), setup.model
    for batch in batches:
        model.zero_grad(set_to_none=True)
        model.train_step(batch, wrapper)
        gradients = []
        for module, parameters in setup.by_module.items():
            own = setup.preconditioner.directions(
                parameters,
                [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters],
            )
            if not torch.isfinite(sum(each.abs().sum() for each in own)):
                raise FloatingPointError(
                    f'the gradient of {module} is not finite on an image batch: the '
                    'checkpoint may be that of a run that diverged'
                )
            gradients += own
        advance()
        yield gradients


def sum_replicas(
    gradients: Iterator[list[Tensor]], level: int, owners: Tensor, squares: Tensor
) -> list[Tensor]:
    """Return the sum of the next 2^level replicas, and measure all sums on the way.

    Args:
        gradients: Yields the gradients of each replica.
        level: Halves are added first, so at most one sum of each level is in memory.
        owners: Index of the module of each parameter.
        squares: Table to which |mean|^2 of each group of 2^i replicas is added; shape
            (modules, levels).
    """
    if level == 0:
        total = next(gradients)
    else:
        first = sum_replicas(gradients, level - 1, owners, squares)
        second = sum_replicas(gradients, level - 1, owners, squares)
        total = [one + other for one, other in zip(first, second, strict=True)]
    # One transfer to the host for all parameters.
    sizes = torch.stack(norms(total)).cpu().double().square()
    squares[:, level].index_add_(0, owners, sizes / 4**level)
    return total


def measure(setup: Setup, advance: Callable[[], None] = lambda: None) -> GradientSums:
    """Run all replicas and return their sums, the same on every rank.

    Modules that had no gradient are left out. ``advance`` is called after each replica
    of this rank.

    Raises:
        FloatingPointError: If a gradient is not finite.
        ValueError: If the anchor had no gradient.
    """
    names, count, size = list(setup.by_module), setup.blocks, setup.block_size
    sizes = [len(group) for group in setup.by_module.values()]
    owners = torch.arange(len(names)).repeat_interleave(torch.tensor(sizes))
    groups = torch.tensor([size >> i for i in range(size.bit_length())])
    tables, totals = [], []
    with replicas_of(setup) as batches:
        gradients = gradients_of(setup, batches, advance)
        for _ in range(count // get_world_size()):
            squares = torch.zeros(len(names), len(groups), dtype=torch.float64)
            total = sum_replicas(gradients, len(groups) - 1, owners, squares)
            tables.append(squares / groups)
            totals.append([each.cpu() for each in total])
    gram = torch.zeros(len(names), count, count, dtype=torch.float64)
    for module in owners:
        # Frees the sums of a parameter once they are used.
        own = torch.stack([total.pop(0).flatten() for total in totals])
        gram[module] += products(_from_all_ranks(own)) / size**2
    group_sq = _from_all_ranks(torch.stack(tables)).permute(1, 2, 0)
    kept = [index for index in range(len(names)) if group_sq[index, 0].any()]
    modules = tuple(names[index] for index in kept)
    if setup.anchor not in modules:
        raise ValueError(
            f"no loss reaches the anchor '{setup.anchor}': it had no gradient"
        )
    images = setup.images_per_replica
    return GradientSums(modules, images, size, group_sq[kept], gram[kept])


def products(rows: Tensor) -> Tensor:
    """Return the inner products of all pairs of rows, in float64."""
    pieces = (piece.double() for piece in rows.split(PIECE, dim=1))
    return sum(piece @ piece.T for piece in pieces)


def _from_all_ranks(own: Tensor) -> Tensor:
    """Return the rows of all ranks, rank by rank, on the CPU."""
    if get_world_size() == 1:
        return own
    return torch.cat(all_gather(own.to(get_comm_device()))).cpu()
