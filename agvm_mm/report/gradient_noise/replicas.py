"""Gradients of many micro-batches of a config's training set, without a step.

Each rank runs its share of the replicas forward and backward and keeps one sum of
gradients for each block in the memory of its host.
"""

import io
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather, get_rank, get_world_size, init_dist
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader, Runner, set_random_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from agvm_mm import cli
from agvm_mm.estimators.preconditioner import (
    AdamPreconditioner,
    IdentityPreconditioner,
    Preconditioner,
    build_preconditioner,
)
from agvm_mm.estimators.reductions import squared_norm
from agvm_mm.method.modulator import Modulator
from agvm_mm.method.modules import has_sync_bn, trainable_by_module
from agvm_mm.optim.wrapper import check_one_optimizer
from agvm_mm.report.gradient_noise.intervals import (
    Blocks,
    GradientSums,
    divide_replicas,
)
from agvm_mm.report.plan import in_float32, quiet
from agvm_mm.training.loading import allow_runner_checkpoints
from agvm_mm.validation import check_number, type_name

# Elements of a parameter whose inner products are computed at a time in float64.
PIECE = 2**18
PLAIN = 'gradient'
RESCALED = 'gradient / (sqrt(v) + eps)'


@dataclass
class Setup:
    """All that a measurement needs.

    Args:
        model: In training mode, with the weights of the checkpoint.
        by_module: Trainable parameters by module.
        preconditioner: Turns a gradient into the measured quantity.
        batches: Yields this rank's replicas.
        blocks: Blocks of all ranks.
        images_per_replica: Images of a replica.
        anchor: Module that the others are compared with.
        ratio_bounds: Smallest and largest ratio of variances.
        notes: What a reader of the result must know.
    """

    model: nn.Module
    by_module: dict[str, list[nn.Parameter]]
    preconditioner: Preconditioner
    batches: Iterable
    blocks: Blocks
    images_per_replica: int
    anchor: str
    ratio_bounds: tuple[float, float]
    notes: list[str]

    @property
    def gradient(self) -> str:
        """Name of the measured quantity."""
        rescaled = isinstance(self.preconditioner, AdamPreconditioner)
        return RESCALED if rescaled else PLAIN

    @property
    def replicas_per_rank(self) -> int:
        """Replicas that this rank runs."""
        return self.blocks.replicas // get_world_size()

    @property
    def images(self) -> int:
        """Images of all replicas."""
        return self.blocks.replicas * self.images_per_replica


class BackwardOnly:
    """Optimizer wrapper as a model's ``train_step`` sees it, without any step."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Change nothing: the forward pass is in float32."""
        yield

    def update_params(self, loss: Tensor, *args: object, **kwargs: object) -> None:
        """Back-propagate."""
        loss.backward()


def set_up(
    cfg: Config,
    checkpoint: str,
    *,
    images: int,
    images_per_replica: int | None = None,
    anchor: str | None = None,
    launcher: str = 'none',
    seed: int = 0,
) -> Setup:
    """Build model and data of a measurement, and check everything before the work.

    Args:
        cfg: Any config that trains; changed in place.
        checkpoint: Path or address of the weights.
        images: Images to run, rounded down to whole blocks of replicas.
        images_per_replica: Defaults to None, the batch size of the config.
        anchor: Defaults to None, that of the config, or 'backbone'.
        launcher: Program that started the ranks. Defaults to 'none'.
        seed: Of the images and all random numbers. Defaults to 0.

    Raises:
        FileNotFoundError: If the checkpoint or the data do not exist.
        TypeError: If the data have no fixed batches, or there are several optimizers.
        ValueError: If the checkpoint is of another model or optimizer, there are too
            few images or more than the training set has, or there is no such anchor.
    """
    start_ranks(cfg, launcher)
    # Each rank augments and samples with its own random numbers.
    set_random_seed(seed, diff_rank_seed=True)
    per_replica = images_per_replica or cfg.train_dataloader.get('batch_size')
    check_number('images per replica', per_replica, low=1, integer=True)
    blocks = check_images(images, per_replica, get_world_size())
    model = build_model(cfg)
    settings = cfg.get('optim_wrapper') or {}
    by_module = trainable_by_module(model, settings.get('modules'))
    modulator = Modulator(
        list(by_module),
        anchor=anchor or settings.get('anchor', 'backbone'),
        ratio_bounds=settings.get('ratio_bounds', (0.5, 10.0)),
    )
    saved = load_weights(model, checkpoint)
    model.to(get_device())
    preconditioner, note = make_preconditioner(cfg, model, saved, checkpoint)
    notes = [note] if note else []
    if get_world_size() > 1 and has_sync_bn(model):
        notes.append(
            'SyncBN couples the replicas of the ranks: noise scales are biased. '
            'Measure on one process, where it becomes BN.'
        )
    return Setup(
        model=model,
        by_module=by_module,
        preconditioner=preconditioner,
        batches=load_batches(cfg, blocks, per_replica, seed),
        blocks=blocks,
        images_per_replica=per_replica,
        anchor=modulator.anchor,
        ratio_bounds=modulator.ratio_bounds,
        notes=notes,
    )


def start_ranks(cfg: Config, launcher: str) -> None:
    """Start the process group of a launcher, on CPUs or accelerators."""
    cli.prepare_launcher(cfg, launcher)
    if launcher != 'none' and not torch.distributed.is_initialized():
        init_dist(launcher, **(cfg.get('env_cfg') or {}).get('dist_cfg', {}))
    init_default_scope(cfg.get('default_scope') or 'mmengine')


def check_images(images: int, per_replica: int, ranks: int) -> Blocks:
    """Return the blocks of replicas that so many images make.

    Raises:
        ValueError: If they make fewer than two replicas, or fewer than the ranks.
    """
    needed = max(2, ranks)
    if images < needed * per_replica:
        raise ValueError(
            f'--images {images} make {images // per_replica} replica(s) of '
            f'{per_replica} images, and {ranks} rank(s) need at least {needed} '
            f'replicas, {needed * per_replica} images; raise --images or lower '
            '--images-per-replica'
        )
    return divide_replicas(images // per_replica, ranks)


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config in training mode."""
    model = MODELS.build(cfg.model)
    if get_world_size() == 1:  # As MMEngine's Runner.
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
    weights = checkpoint.get('state_dict', checkpoint)
    weights = {name.removeprefix('module.'): value for name, value in weights.items()}
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
    """Return what rescales gradients as the optimizer of a config does, and a note.

    Raises:
        TypeError: If the config has several optimizers.
        ValueError: If the checkpoint was saved with another optimizer.
    """
    plain = IdentityPreconditioner()
    if not cfg.get('optim_wrapper'):
        return plain, 'The config has no optimizer: plain gradient.'
    settings = in_float32(cfg.optim_wrapper)
    with quiet():
        wrapper = build_optim_wrapper(model, settings)
    check_one_optimizer('tools/noise_scale.py', wrapper)
    optimizer, name = wrapper.optimizer, type_name(type(wrapper.optimizer))
    try:
        preconditioner = build_preconditioner(optimizer)
    except TypeError:
        return plain, f'{name} steps by trust ratios or its own rules: plain gradient.'
    if not isinstance(preconditioner, AdamPreconditioner):
        return preconditioner, ''
    saved = checkpoint.get('optimizer')
    if not saved or not saved.get('state'):
        return plain, (
            'The checkpoint has no optimizer state, so the gradient is not divided by '
            f"{name}'s sqrt(v) + eps: plain gradient, not what {name} steps along."
        )
    if not any('exp_avg_sq' in each for each in saved['state'].values()):
        raise ValueError(
            f'{path} has the state of another optimizer than {name}: no exp_avg_sq'
        )
    try:
        optimizer.load_state_dict(
            {key: saved[key] for key in ('state', 'param_groups')}
        )
    except ValueError as error:
        raise ValueError(
            f'{path}: its optimizer state has other parameter groups than the config '
            f'({error}); use the config that it was trained with'
        ) from error
    return preconditioner, ''


def load_batches(
    cfg: Config, blocks: Blocks, images_per_replica: int, seed: int
) -> DataLoader:
    """Build a dataloader of this rank's replicas, drawn by the config's own samplers.

    Raises:
        TypeError: If the data set has no indices.
        ValueError: If it has fewer images.
    """
    settings = cfg.train_dataloader.copy()
    settings['batch_size'] = images_per_replica
    loader = Runner.build_dataloader(settings, seed=seed)
    if loader.batch_sampler is None:
        raise TypeError(
            f'{type(loader.dataset).__name__} has no batch sampler that draws indices; '
            'use a map-style dataset'
        )
    images, found = blocks.replicas * images_per_replica, len(loader.dataset)
    if images > found:
        raise ValueError(f'--images {images}, but the training set has {found} images')
    count = blocks.replicas // get_world_size()
    whole = (list(b) for b in loader.batch_sampler if len(b) == images_per_replica)
    indices = list(islice(whole, count))
    if len(indices) < count:
        what = type(loader.batch_sampler).__name__
        raise ValueError(
            f'{what} draws only {len(indices)} full batches of {images_per_replica} '
            f'images on rank {get_rank()}, and --images {images} needs {count}; lower '
            '--images'
        )
    workers = loader.num_workers
    return DataLoader(
        loader.dataset,
        batch_sampler=indices,
        num_workers=workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        pin_memory=loader.pin_memory,
        multiprocessing_context=loader.multiprocessing_context if workers else None,
    )


def gradients_of(setup: Setup) -> Iterator[list[Tensor | None]]:
    """Yield the rescaled gradients of each replica of this rank.

    Raises:
        FloatingPointError: If a gradient is not finite.
    """
    wrapper, model = BackwardOnly(), setup.model
    for batch in setup.batches:
        model.zero_grad(set_to_none=True)
        model.train_step(batch, wrapper)
        gradients = []
        for module, parameters in setup.by_module.items():
            own = [_rescaled(setup.preconditioner, p) for p in parameters]
            total = sum(each.abs().sum() for each in own if each is not None)
            if not torch.isfinite(torch.as_tensor(total)):
                raise FloatingPointError(
                    f'the gradient of {module} is not finite on an image batch: the '
                    'checkpoint may be that of a run that diverged'
                )
            gradients += own
        yield gradients


def _rescaled(preconditioner: Preconditioner, parameter: nn.Parameter) -> Tensor | None:
    gradient = parameter.grad
    if gradient is None:
        return None
    parts = [
        preconditioner.replica(parameter, block, gradient[block])
        for block in preconditioner.blocks(parameter)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class BlockSums:
    """Sums of one block of replicas, added like bits of a counter.

    For each power of two below the size it holds at most one sum of gradients.

    Args:
        owners: Index of the module of each parameter.
        size: Replicas of the block, a power of two.

    Attributes:
        group_sq: Sums over the groups of 2^i replicas of |mean of the group|^2, shape
            (modules, levels).
    """

    def __init__(self, owners: list[int], size: int) -> None:
        self._owners = torch.tensor(owners)
        self._waiting: list[list[Tensor | None] | None] = [None] * size.bit_length()
        shape = max(owners) + 1, size.bit_length()
        self.group_sq = torch.zeros(shape, dtype=torch.float64)

    def add(self, gradients: list[Tensor | None]) -> None:
        """Add a replica."""
        level, total = 0, gradients
        self._measure(level, total)
        while (other := self._waiting[level]) is not None:
            self._waiting[level] = None
            total = [_add(a, b) for a, b in zip(other, total, strict=True)]
            level += 1
            self._measure(level, total)
        self._waiting[level] = total

    @property
    def total(self) -> list[Tensor | None]:
        """Sum of the gradients of a full block."""
        return self._waiting[-1]

    def _measure(self, level: int, total: list[Tensor | None]) -> None:
        known = [index for index, each in enumerate(total) if each is not None]
        if known:
            # One transfer to the host for all parameters.
            norms = torch.stack([squared_norm(total[index]) for index in known])
            norms = norms.cpu().double() / 4**level
            self.group_sq[:, level].index_add_(0, self._owners[known], norms)


def _add(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def measure(setup: Setup, advance: Callable[[], None] = lambda: None) -> GradientSums:
    """Run all replicas and return their sums, the same on every rank.

    Args:
        setup: From :func:`set_up`.
        advance: Called after each replica of this rank.

    Raises:
        FloatingPointError: If a gradient is not finite.
    """
    sizes = [len(parameters) for parameters in setup.by_module.values()]
    owners = [module for module, size in enumerate(sizes) for _ in range(size)]
    size = setup.blocks.size
    gradients = gradients_of(setup)
    tables, totals = [], []
    for _ in range(setup.blocks.count // get_world_size()):
        block = BlockSums(owners, size)
        for replica in islice(gradients, size):
            block.add(replica)
            advance()
        groups = torch.tensor([size >> i for i in range(size.bit_length())])
        tables.append(block.group_sq / groups)
        totals.append([None if x is None else x.cpu() for x in block.total])
    parameters = [p for group in setup.by_module.values() for p in group]
    gram = torch.zeros(
        len(sizes), setup.blocks.count, setup.blocks.count, dtype=torch.float64
    )
    for index, (module, parameter) in enumerate(zip(owners, parameters, strict=True)):
        zeros = torch.zeros_like(parameter, device='cpu')
        own = [zeros if t[index] is None else t[index] for t in totals]
        # Blocks are not needed any more.
        for total in totals:
            total[index] = None
        gram[module] += products(_from_all_ranks(torch.stack(own).flatten(1))) / size**2
    return GradientSums(
        tuple(setup.by_module),
        setup.images_per_replica,
        size,
        _from_all_ranks(torch.stack(tables)).permute(1, 2, 0),
        gram,
    )


def products(rows: Tensor) -> Tensor:
    """Return the inner products of all pairs of rows, in float64."""
    pieces = (piece.double() for piece in rows.split(PIECE, dim=1))
    return sum(piece @ piece.T for piece in pieces)


def _from_all_ranks(own: Tensor) -> Tensor:
    """Return the rows of all ranks, rank by rank, on the CPU."""
    if get_world_size() == 1:
        return own
    backend = torch.distributed.get_backend()
    device = 'cpu' if backend == 'gloo' else get_device()
    return torch.cat(all_gather(own.to(device))).cpu()


def drop_without_gradient(sums: GradientSums, anchor: str) -> GradientSums:
    """Return the sums without modules that had no gradient.

    Raises:
        ValueError: If the anchor had none.
    """
    kept = [i for i in range(len(sums.modules)) if sums.group_sq[i, 0].any()]
    modules = tuple(sums.modules[i] for i in kept)
    if anchor not in modules:
        raise ValueError(f"no loss reaches the anchor '{anchor}': it had no gradient")
    gram, group_sq = sums.gram[kept], sums.group_sq[kept]
    return replace(sums, modules=modules, group_sq=group_sq, gram=gram)
