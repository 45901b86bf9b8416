"""Losses of whole updates, divided by one number whatever the layout."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import broadcast_object_list
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from agvm_mm.sharding.model import FullyShardedModel
from agvm_mm.training.batch import BatchSize
from agvm_mm.training.dataloader import UpdateWindow
from agvm_mm.training.loss_counts import (
    REDUCED,
    Examination,
    Plan,
    clamped,
    examine,
    intercept,
    kept_generators,
    near,
)
from agvm_mm.validation import check_choice

MODES = ('micro_batch', 'average', 'update')
SHARE = 0.1
"""Smallest share of an update in the average of all so far."""
STATE = 'agvm_normalizers_of_image'
"""In the message hub, which is part of a checkpoint."""


class CountingWrapper:
    """Optimizer wrapper as a model sees it in a pass that only counts."""

    def __init__(self, wrapped: OptimWrapper) -> None:
        self.optim_context = wrapped.optim_context

    def update_params(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


class Normalizers:
    """What the losses of each update are divided by.

    Args:
        mode: 'micro_batch' for what the toolboxes do, 'average' for an average over
            earlier updates, 'update' for the whole update.

    Attributes:
        correction: Factor of the gradients of the update, after its backward passes.

    Raises:
        ValueError: If there is no such mode.
    """

    def __init__(self, mode: str) -> None:
        check_choice('normalizers', mode, MODES)
        self.mode = mode
        self.correction = 1.0
        self._found: Examination | None = None
        self._clamped: set[str] | None = None

    def prepare(self, runner: Runner) -> None:
        """Find the normalizers of the model before its first update.

        Raises:
            TypeError: If the model is divided or compiled, or cannot be examined.
        """
        if self.mode == 'micro_batch':
            runner.message_hub.runtime_info.pop(STATE, None)
            return
        compiles = runner.cfg.get('compile') not in (None, False)  # {} compiles.
        if compiles or isinstance(runner.model, FullyShardedModel):
            what = 'compile' if compiles else 'FullyShardedModel'
            raise TypeError(
                f'normalizers={self.mode!r} does not work with {what}; remove it, or '
                "use normalizers='micro_batch'"
            )
        model = unwrap(runner.model)
        self._found = find_normalizers(model, self.mode)
        if self._found.unreached:
            runner.logger.warning(describe_unreached(model, self.mode, self._found))

    @contextmanager
    def of_update(self, runner: Runner, window: UpdateWindow) -> Iterator[Iterator]:
        """Replace normalizers during the backward passes of one update.

        Yields:
            The micro-batches, as :meth:`UpdateWindow.micro_batches`.
        """
        self.correction = 1.0
        found = self._found
        if found is None or not found.per_image:
            yield window.micro_batches()
            return
        model, hub = unwrap(runner.model), runner.message_hub
        saved, updates = hub.runtime_info.get(STATE) or ({}, 0)
        if set(saved) != set(found.per_image):
            saved, updates = found.per_image, 0
        share = 1.0 if self.mode == 'update' else max(SHARE, 1 / (updates + 1))
        corrects = self.mode == 'update' and found.is_one
        counts = share > SHARE and not corrects
        batches: Any = window.micro_batches()
        used = dict(saved)
        if corrects:
            used = {key: each or found.per_image[key] for key, each in saved.items()}
        elif counts:
            batches = list(batches)
            # Models change their data.
            copies = map(copy.deepcopy, batches)
            wrapper = CountingWrapper(runner.optim_wrapper)
            own = count_normalizers(model, found, wrapper, copies, window.sizes)
            used = mix(saved, own, share)
        self._warn_of_clamps(runner, used, min(window.sizes))
        plan = Plan(found, used)
        with intercept(found.modules_of(model), plan):
            micro_batches = counted(plan, batches, window.sizes)
            yield micro_batches
            next(micro_batches, None)  # Ends the last one.
        own = plan.means(model)
        if corrects:
            self.correction = correction(used, own)
        if not counts:
            used = mix(saved, own, share)
        if all(map(math.isfinite, used.values())):  # Others would stay in it.
            # An average begins with its own updates.
            number = updates + 1 if self.mode == 'average' else 0
            hub.update_info(STATE, (used, number))

    def _warn_of_clamps(
        self, runner: Runner, used: Mapping[str, float], images: int
    ) -> None:
        """Warn once if a head takes 1 for a smaller number of a micro-batch."""
        low = {k: v for k, v in used.items() if REDUCED in k and 0 < v * images < 1}
        if low and self._clamped is None:
            self._clamped = clamped(unwrap(runner.model), self._found)
        found = [value for key, value in low.items() if key in self._clamped]
        if found:
            self._clamped = set()
            lowest = min(found)
            runner.logger.warning(
                f'normalizers={self.mode!r}: the head takes at least 1 of what '
                f'reduce_mean gives, which is {lowest * images:.2g} for {images} '
                'image(s), so its losses are too small; use '
                f'{math.ceil(1 / lowest):,} images or more in a micro-batch'
            )


def find_normalizers(model: BaseModel, mode: str) -> Examination:
    """Find the normalizers that a mode replaces, the same on all ranks.

    The model is not wrapped; the mode is 'average' or 'update'.

    Raises:
        TypeError: If the model cannot be examined.
    """
    try:
        found = examine(model)
    except Exception as error:
        raise TypeError(
            f'normalizers={mode!r} has to run the losses of {type(model).__name__} on '
            f'small random images, which failed ({type(error).__name__}: {error}); use '
            "normalizers='micro_batch'"
        ) from error
    # Counts on GPUs may differ in the last bit.
    shared = [found]
    broadcast_object_list(shared)
    return shared[0]


def count_normalizers(
    model: BaseModel,
    found: Examination,
    wrapper: CountingWrapper,
    batches: Iterable,
    sizes: Sequence[int],
) -> dict[str, float]:
    """Return mean normalizers of an image on all ranks, by a pass without gradients.

    The model, which is not wrapped, may change the micro-batches of this rank. Its
    buffers and random numbers stay as they are.
    """
    plan = Plan(found)
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    with kept_generators(), torch.no_grad():
        with intercept(found.modules_of(model), plan):
            for batch in counted(plan, batches, sizes):
                model.train_step(batch, wrapper)
        for module, name, buffer, before in buffers:
            # A model may have put another tensor in its place.
            setattr(module, name, buffer.copy_(before))
    return plan.means(model)


def counted(plan: Plan, batches: Iterable, sizes: Sequence[int]) -> Iterator:
    """Yield micro-batches, and tell a plan about each."""
    for batch, size in zip(batches, sizes, strict=True):
        plan.start(size)
        yield batch
        plan.end()


def mix(
    before: Mapping[str, float], own: Mapping[str, float], share: float
) -> dict[str, float]:
    """Return the average with an update, which has a share in it."""
    mixed = {}
    for key, old in before.items():
        # What an update does not know stays, or begins with the next one.
        new = own.get(key, old if share < 1 else 0.0)
        # Before, no image had any: 0.
        mixed[key] = (1 - share) * old + share * new if old else new
    return mixed


def correction(used: Mapping[str, float], own: Mapping[str, float]) -> float:
    """Return the factor from gradients of some normalizers to those of an update.

    Raises:
        RuntimeError: If it is not the same for all.
    """
    factors = [used[key] / own[key] for key in own if own[key]]
    if not factors:
        return 1.0
    if not near(min(factors), max(factors)):
        raise RuntimeError(
            "normalizers='update' found one normalizer on random images, but several "
            f'in this update, {own}; use normalizers="average"'
        )
    return factors[0]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model in a wrapper such as DDP."""
    return model.module if is_model_wrapper(model) else model


def describe_unreached(model: nn.Module, mode: str, found: Examination) -> str:
    """Name the losses that still depend on how images are divided."""
    return (
        f'normalizers={mode!r} does not reach {", ".join(found.unreached)} of '
        f'{type(model).__name__}: they still depend on how images are divided into '
        'micro-batches'
    )


def describe_losses(
    model: nn.Module, batch: BatchSize, mode: str = 'micro_batch'
) -> str:
    """Say in one line whether losses depend on how an update is divided.

    Return '' if there is nothing to say. For ``mode`` see :class:`Normalizers`.
    """
    if mode != 'micro_batch':
        of = dict(average='their average over updates', update='those of an update')
        return f'divided by normalizers of an image: {of[mode]}'
    images = batch.images_per_rank
    if batch.total == images or isinstance(model, FullyShardedModel):
        return ''
    try:
        found = examine(unwrap(model))
    except Exception as error:
        return f'not examined ({type(error).__name__}: {error})'
    names = dict.fromkeys((*found.terms, *found.unreached))
    if not names:
        return ''
    parts = batch.total // images
    advice = ['use 4 images or more in each'] if images < 4 else []
    advice += ["normalizers='average'"] if found.terms else []
    return (
        f'{", ".join(names)}: depend on what else is in a micro-batch, such as its '
        f'positives; {parts:,} x {images:,} images are not one batch of '
        f'{batch.total:,}{"; " * bool(advice)}{", or ".join(advice)}'
    )
