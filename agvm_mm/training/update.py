"""One update of a large-batch loop: random numbers, weights of losses, its end."""

import logging
import random
from collections.abc import Callable
from contextlib import nullcontext
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from agvm_mm.optim.agvm import MicroBatch
from agvm_mm.optim.wrapper import AGVMOptimWrapper


def derive_seed(*key: int) -> int:
    """Return a seed of 32 bits that depends on all of a key."""
    return np.random.SeedSequence(key).generate_state(1).tolist()[0]


def seed_update(seed: int, rank: int, update: int) -> None:
    """Make the random numbers of an update depend on rank and number only.

    A run that resumes before an update then draws the same numbers as a run that was
    not interrupted. Ranks draw different numbers, so that dropout and sampled proposals
    average over them.

    Args:
        seed: Seed of the run.
        rank: Rank of this process.
        update: Number of the update, from 0.
    """
    derived = derive_seed(seed, rank, update)
    random.seed(derived)
    np.random.seed(derived)
    torch.manual_seed(derived)


class RandomStream:
    """Context in which the global generators of the CPU continue a stream of their own.

    Args:
        key: Seeds the stream.
    """

    def __init__(self, *key: int) -> None:
        self._seed = derive_seed(*key)
        self._inside: tuple | None = None
        self._outside: tuple | None = None

    def __enter__(self) -> None:
        self._outside = self._state()
        if self._inside is not None:
            self._restore(self._inside)
            return
        random.seed(self._seed)
        np.random.seed(self._seed)
        # torch.manual_seed would reset the generators of GPUs as well.
        torch.default_generator.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        self._inside = self._state()
        self._restore(self._outside)

    @staticmethod
    def _state() -> tuple:
        return random.getstate(), np.random.get_state(), torch.get_rng_state()

    @staticmethod
    def _restore(state: tuple) -> None:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


class WeightedOptimWrapper:
    """Optimizer wrapper as a model sees it during one micro-batch of an update.

    An update follows the mean over its images, so a micro-batch with fewer of them has
    a smaller weight. All other attributes are those of the wrapped optimizer wrapper.

    Args:
        optim_wrapper: The optimizer wrapper of the run.
        weight: Share of the micro-batch in the images of the update.
        backward: Back-propagates the weighted loss.

    Attributes:
        step_kwargs: Arguments of ``step`` that the model asked for; None before the
            backward pass.
        zero_kwargs: Arguments of ``zero_grad`` that the model asked for.
    """

    def __init__(
        self,
        optim_wrapper: OptimWrapper,
        weight: Fraction,
        backward: Callable[[Tensor], None],
    ) -> None:
        self._optim_wrapper = optim_wrapper
        self._weight = weight
        self._backward = backward
        self.step_kwargs: dict | None = None
        self.zero_kwargs: dict = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._optim_wrapper, name)

    def update_params(
        self,
        loss: Tensor,
        step_kwargs: dict | None = None,
        zero_kwargs: dict | None = None,
    ) -> None:
        """Back-propagate the weighted loss; the loop steps at the end of the update."""
        # As OptimWrapper.scale_loss: k micro-batches of the same size divide by k.
        self._backward(loss / float(1 / self._weight))
        self.step_kwargs, self.zero_kwargs = step_kwargs or {}, zero_kwargs or {}


class Update:
    """The micro-batches of one update and its step.

    A model may skip a micro-batch, on a loss that is not finite for example. The update
    then follows the mean over the images of the others.

    Args:
        model: As the runner trains it.
        optim_wrapper: The optimizer wrapper of the run, which accumulates nothing.
        micro_batches: Micro-batches of the update on this rank.
        images: Images of the update over all ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        optim_wrapper: OptimWrapper,
        micro_batches: int,
        images: int,
    ) -> None:
        self._model = model
        self._optim_wrapper = optim_wrapper
        self._planned = self._left = micro_batches
        self._images = images
        self._weight = Fraction(0)
        self._last: WeightedOptimWrapper | None = None
        self._last_came = False

    def train_step(self, data_batch: object, weight: Fraction) -> dict | None:
        """Run ``train_step`` of the model on one micro-batch.

        Only the last one reduces the gradients over the ranks.

        Args:
            data_batch: The micro-batch.
            weight: Its share in the images of the update.

        Returns:
            Losses to log.
        """
        wrapper, backward = self._optim_wrapper, self._optim_wrapper.backward
        if isinstance(wrapper, AGVMOptimWrapper):
            micro_batch = MicroBatch(float(weight), self._planned, self._images)
            backward = partial(backward, micro_batch=micro_batch)
        self._left -= 1
        view = WeightedOptimWrapper(wrapper, weight, backward)
        # As OptimWrapper.optim_context, which knows nothing of this loop's updates.
        syncs = self._left == 0 or not hasattr(self._model, 'no_sync')
        with nullcontext() if syncs else self._model.no_sync():
            losses = self._model.train_step(data_batch, optim_wrapper=view)
        self._last_came = view.step_kwargs is not None
        if self._last_came:
            self._last = view
            self._weight += weight
        return losses

    def step(self) -> None:
        """Step on the gradients of this update, or drop it."""
        wrapper = self._optim_wrapper
        if self._last is None or (self._is_ddp and not self._last_came):
            print_log(
                'dropped an update: '
                + (
                    'none of its micro-batches had a backward pass'
                    if self._last is None
                    else 'its last micro-batch, which reduces the gradients of all '
                    'ranks, had no backward pass'
                ),
                logger='current',
                level=logging.WARNING,
            )
            reset_update(wrapper, dropped=True)
            return
        if self._weight != 1:
            if isinstance(wrapper, AGVMOptimWrapper):
                wrapper.agvm.finish_measurement()
            for group in wrapper.optimizer.param_groups:
                for parameter in group['params']:
                    if parameter.grad is not None:
                        parameter.grad /= float(self._weight)
        wrapper.step(**self._last.step_kwargs)
        wrapper.zero_grad(**self._last.zero_kwargs)

    @property
    def _is_ddp(self) -> bool:
        return isinstance(self._model, DistributedDataParallel)


def reset_update(optim_wrapper: OptimWrapper, *, dropped: bool = False) -> None:
    """Clear the gradients of an unfinished update.

    Args:
        optim_wrapper: The optimizer wrapper of the run.
        dropped: Whether the update counts as done. Defaults to False.
    """
    if isinstance(optim_wrapper, AGVMOptimWrapper) and optim_wrapper.agvm is not None:
        optim_wrapper.agvm.reset_update(dropped=dropped)
    optim_wrapper.zero_grad()
