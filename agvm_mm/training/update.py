"""One update of a large-batch loop: random numbers, weights of losses, its end."""

import logging
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partialmethod
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object, get_world_size
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from agvm_mm.estimators.reductions import widened
from agvm_mm.optim.agvm import MicroBatch
from agvm_mm.optim.wrapper import AGVMOptimWrapper
from agvm_mm.sharding.model import FullyShardedModel
from agvm_mm.sharding.state import parameters_of

SEEDS = 2**32
"""NumPy takes seeds below it."""


def derive_seed(*key: int) -> int:
    """Return a seed of 32 bits that depends on all of a key."""
    return np.random.SeedSequence(key).generate_state(1).tolist()[0]


def seed_update(seed: int, rank: int, update: int) -> None:
    """Make the random numbers of an update depend on rank and number only.

    A run that resumes before an update then draws the same numbers as a run that was
    not interrupted. Ranks draw different numbers, so that dropout and sampled proposals
    average over them.
    """
    derived = derive_seed(seed, rank, update)
    seed_cpu(derived)
    if get_device() != 'cpu':
        torch.manual_seed(derived)


def seed_cpu(seed: int) -> None:
    """Seed the global generators of the CPU."""
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed would reset the generators of GPUs as well.
    torch.default_generator.manual_seed(seed)


class RandomStream:
    """Context in which the global generators of the CPU continue a stream of their own.

    The key seeds it.
    """

    def __init__(self, *key: int) -> None:
        seed = derive_seed(*key)
        state = torch.Generator().manual_seed(seed).get_state()
        self._other = random.Random(seed).getstate(), np.random.MT19937(seed), state

    def __enter__(self) -> None:
        # NumPy copies the state of its generator slowly, and exchanges generators fast.
        numpy = np.random.get_bit_generator()
        before = random.getstate(), numpy, torch.get_rng_state()
        random.setstate(self._other[0])
        np.random.set_bit_generator(self._other[1])
        torch.set_rng_state(self._other[2])
        self._other = before

    def __exit__(self, *_: object) -> None:
        self.__enter__()


class RankReport(NamedTuple):
    """What a rank knows before the gradients of an update are reduced.

    Attributes:
        planned: Its images.
        came: Those that the model did not skip.
        last_came: Whether its last micro-batch has a backward pass.
        failed: Whether the model caught an error of an earlier backward pass.
    """

    planned: int
    came: int
    last_came: bool
    failed: bool


class Update(OptimWrapper):
    """One update, and the optimizer wrapper as the model sees it meanwhile.

    A model calls ``update_params`` once for each micro-batch, and the loop steps at
    the end. It may skip a micro-batch, on a loss that is not finite for example: the
    update then follows the mean over the images that came, on all ranks. Attributes
    that are not defined here are those of the wrapped optimizer wrapper, also to set.

    Args:
        model: As the runner trains it.
        optim_wrapper: The optimizer wrapper of the run, which accumulates nothing.
        sizes: Images of each micro-batch of this rank.
        images: Images of the update over all ranks.
        even: Whether all ranks have the same number of them. Defaults to True.
    """

    # The state is that of the wrapped object: see __getattr__.
    def __init__(
        self,
        model: nn.Module,
        optim_wrapper: OptimWrapper,
        sizes: Sequence[int],
        images: int,
        *,
        even: bool = True,
    ) -> None:
        self._model = model
        self._wrapped = optim_wrapper
        self._sizes = sizes
        self._images = images
        self._over_ranks = is_model_wrapper(model)
        # These skip nothing, so no rank has to ask the others.
        known = MMDistributedDataParallel.train_step, FullyShardedModel.train_step
        own_train_step = self._over_ranks and type(model).train_step not in known
        self._asks = own_train_step or not even
        self._came: list[bool] = []
        self._failed = False
        self._values: list[Mapping] = []
        self._reports: list[RankReport] = []
        self._step_kwargs: dict = {}
        self._zero_kwargs: dict = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith('_'):
            super().__setattr__(name, value)
        else:
            setattr(self._wrapped, name, value)

    # What the loop calls

    def train_step(self, data_batch: object) -> None:
        """Run ``train_step`` of the model on the next micro-batch.

        Only the last one reduces the gradients over the ranks.

        Raises:
            RuntimeError: If the model steps by itself, or only some ranks have the
                last micro-batch.
        """
        self._came.append(False)
        # As OptimWrapper.optim_context, which knows nothing of this loop's updates.
        syncs = self.should_sync() or not hasattr(self._model, 'no_sync')
        with nullcontext() if syncs else self._model.no_sync():
            values = self._model.train_step(data_batch, optim_wrapper=self)
        # Without the graph, which would stay in memory until the update ends, and wide
        # enough for the sum over its images.
        values = dict(values or {})
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = widened([value.detach()])[0]
        self._values.append(values)
        if self.should_sync() and not self._came[-1]:
            self._agree()

    def finish(self, scale: float = 1.0) -> dict[str, Any]:
        """Step on the gradients of this update, or drop it.

        Args:
            scale: Factor of the gradients, and of the losses to log. Defaults to 1.

        Returns:
            Values to log: the mean of each over the micro-batches that have it.
        """
        wrapper = self._wrapped
        reason = self._reason_to_drop()
        if reason:
            print_log(
                f'dropped an update: {reason}', logger='current', level=logging.WARNING
            )
            reset_update(self._model, wrapper, dropped=True)
            return self._means(scale)
        came = sum(each.came for each in self._reports)
        came /= sum(each.planned for each in self._reports)
        if came != 1 or scale != 1:
            if isinstance(wrapper, AGVMOptimWrapper):
                wrapper.agvm.finish_measurement()
            for parameter in parameters_of(wrapper.optimizer):
                if parameter.grad is not None:
                    parameter.grad /= came / scale
        wrapper.step(**self._step_kwargs)
        wrapper.zero_grad(**self._zero_kwargs)
        return self._means(scale)

    # What the model calls

    def update_params(
        self,
        loss: Tensor,
        step_kwargs: dict | None = None,
        zero_kwargs: dict | None = None,
    ) -> None:
        """Back-propagate the weighted loss; the loop steps at the end of the update.

        Raises:
            RuntimeError: If this is the second call for a micro-batch.
        """
        if self._came[-1]:
            raise RuntimeError(
                'train_step called update_params twice for one micro-batch, but an '
                'update of a large-batch loop is one step: add the losses and call it '
                'once, or use a loop of MMEngine'
            )
        self._came[-1] = True
        if self.should_sync():
            self._agree()
        loss, own = self.scale_loss(loss), {}
        if isinstance(self._wrapped, AGVMOptimWrapper):
            weight, passes = self._rank_images() / self._images, len(self._sizes)
            own = dict(micro_batch=MicroBatch(weight, passes, self._images))
        try:
            self._wrapped.backward(loss, **own)
        except Exception:  # The model may catch it, out of memory for example.
            self._failed = True
            raise
        self._step_kwargs, self._zero_kwargs = step_kwargs or {}, zero_kwargs or {}

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return a loss times the share of its micro-batch in the update."""
        # As OptimWrapper: k micro-batches of the same size divide by k.
        return loss / (self._images / self._rank_images())

    def _rank_images(self) -> int:
        """Return the images of this micro-batch if all ranks have as many."""
        return self._sizes[len(self._came) - 1] * get_world_size()

    def should_sync(self) -> bool:
        """Return whether this micro-batch is the last one."""
        return len(self._came) == len(self._sizes)

    should_update = should_sync

    def optim_context(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the context of the wrapped optimizer wrapper."""
        return self._wrapped.optim_context(model)

    def _refuse(self, name: str, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            f'{type(self._model).__name__}.train_step called {name} of the optimizer '
            'wrapper, but in a large-batch loop an update is several micro-batches and '
            'one step: call update_params(loss) once, or use a loop of MMEngine'
        )

    backward = partialmethod(_refuse, 'backward')
    step = partialmethod(_refuse, 'step')
    zero_grad = partialmethod(_refuse, 'zero_grad')

    def _agree(self) -> None:
        """Learn what came on all ranks, before the last backward pass reduces it."""
        pairs = zip(self._sizes, self._came, strict=True)
        report = RankReport(
            planned=sum(self._sizes),
            came=sum(size for size, came in pairs if came),
            last_came=self._came[-1],
            failed=self._failed,
        )
        self._reports = all_gather_object(report) if self._asks else [report]
        without = [n for n, each in enumerate(self._reports) if not each.last_came]
        if 0 < len(without) < len(self._reports):
            raise RuntimeError(
                'the last micro-batch of an update reduces the gradients of all ranks, '
                f'but the model skipped it on rank(s) {", ".join(map(str, without))} '
                'only: return a loss times 0 there instead'
            )
        unequal = len({each.came for each in self._reports}) > 1
        if unequal and isinstance(self._wrapped, AGVMOptimWrapper):
            self._wrapped.agvm.skip_measurement('the ranks have different shares of it')

    def _reason_to_drop(self) -> str | None:
        failed_before = any(each.failed for each in self._reports)
        if self._failed and self._over_ranks and not failed_before:
            raise RuntimeError(
                'train_step caught an error of the backward pass that reduces the '
                'gradients of all ranks, and the others wait for it'
            )
        if self._failed or failed_before:
            return 'a backward pass failed and left a part of its gradient'
        if not any(each.came for each in self._reports):
            return 'none of its micro-batches had a backward pass'
        if self._over_ranks and not self._came[-1]:
            return (
                'its last micro-batch, which reduces the gradients of all ranks, had '
                'no backward pass'
            )
        return None

    def _means(self, scale: float) -> dict[str, Any]:
        """Return the mean of each logged value over the micro-batches that came."""
        rows = list(zip(self._sizes, self._values, self._came, strict=True))
        rows = [row for row in rows if row[2]] or rows
        images: dict[str, int] = {}
        sums: dict[str, Any] = {}
        for size, values, _ in rows:
            for name, value in values.items():
                images[name] = images.get(name, 0) + size
                sums[name] = sums.get(name, 0) + value * size
        return {
            # As MMEngine tells losses from other values.
            name: total / images[name] * (scale if 'loss' in name else 1)
            for name, total in sums.items()
        }


def reset_update(
    model: nn.Module, optim_wrapper: OptimWrapper, *, dropped: bool = False
) -> None:
    """Clear the gradients of an unfinished update, which counts as done if dropped."""
    if isinstance(optim_wrapper, AGVMOptimWrapper) and optim_wrapper.agvm is not None:
        optim_wrapper.agvm.reset_update(dropped=dropped)
    model.zero_grad()
