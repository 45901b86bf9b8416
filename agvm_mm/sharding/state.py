"""State of an optimizer: on every rank as a whole, or divided over the ranks.

A checkpoint has the whole state, in the form of the plain optimizer, so that a run may
resume with another division or without one.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch.distributed as dist
from mmengine.optim.optimizer import ZeroRedundancyOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from agvm_mm.estimators.fsdp import ShardedAdam
from agvm_mm.estimators.preconditioner import Preconditioner, build_preconditioner
from agvm_mm.estimators.zero import ZeroAdam
from agvm_mm.optim.split import scaled_learning_rates
from agvm_mm.sharding.model import DTensor, gather_tensors, shard_like
from agvm_mm.validation import type_name


class OptimizerState:
    """Optimizer whose whole state is on every rank.

    Args:
        optimizer: Steps along the gradients.

    Attributes:
        is_sharded: Whether the state is divided over the ranks; a class attribute.
    """

    is_sharded = False

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def kind(self) -> str:
        """Name of the algorithm."""
        return type(self.optimizer).__name__

    def build_preconditioner(self, *, measures_only: bool) -> Preconditioner:
        """See :func:`.build_preconditioner`."""
        return build_preconditioner(self.optimizer, measures_only=measures_only)

    @contextmanager
    def scaled_learning_rates(
        self, module_of: Mapping[int, str], multipliers: Mapping[str, float]
    ) -> Iterator[None]:
        """See :func:`.scaled_learning_rates`."""
        with scaled_learning_rates(self.optimizer, module_of, multipliers):
            yield

    @contextmanager
    def gathered(self, read: Callable[[], dict]) -> Iterator[None]:
        """Make the whole state available to :meth:`save`; every rank has to enter.

        Args:
            read: Returns the state as the optimizer gives it.
        """
        yield

    def save(self, read: Callable[[], dict]) -> dict:
        """Return the whole state."""
        return read()

    def load(self, write: Callable[[dict], None], state: dict) -> None:
        """Load a whole state.

        Args:
            write: Loads a state as the optimizer takes it.
            state: The whole state.
        """
        write(state)


class ShardedState(OptimizerState):
    """Optimizer whose state is divided over the ranks."""

    is_sharded = True

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self._whole: dict | None = None

    @contextmanager
    def gathered(self, read: Callable[[], dict]) -> Iterator[None]:
        self._whole = self.gather(read())
        try:
            yield
        finally:
            self._whole = None

    def save(self, read: Callable[[], dict]) -> dict:
        """Return the whole state, on rank 0.

        Raises:
            RuntimeError: Outside :meth:`gathered`.
        """
        if self._whole is None:
            raise RuntimeError(
                'the state of the optimizer is divided over the ranks, and all of them '
                'have to take part when it is saved: save checkpoints by '
                "default_hooks=dict(checkpoint=dict(type='AtomicCheckpointHook'))"
            )
        return dict(self._whole)

    @abstractmethod
    def gather(self, state: dict) -> dict:
        """Return the whole state on rank 0; other ranks may return a part."""


class ZeroState(ShardedState):
    """ZeRO-1: one rank steps each parameter; its inner optimizer has the state.

    ``optimizer.param_groups`` are those of the plain optimizer. The groups of the inner
    one have the same places and this rank's parameters, and a step copies the settings
    of the former to the latter by place.

    Args:
        optimizer: MMEngine's; each rank has the whole parameters.

    Raises:
        ValueError: If it steps during the backward pass.
    """

    def __init__(self, optimizer: ZeroRedundancyOptimizer) -> None:
        super().__init__(optimizer)
        if not hasattr(optimizer, 'optim'):  # DDP makes it at the third update.
            raise ValueError(
                'ZeroRedundancyOptimizer(overlap_with_ddp=True) steps before AGVM has '
                'measured the gradients; remove overlap_with_ddp'
            )

    @property
    def kind(self) -> str:
        return type(self.optimizer.optim).__name__

    def build_preconditioner(self, *, measures_only: bool) -> Preconditioner:
        inner = self.optimizer.optim
        built = build_preconditioner(inner, measures_only=measures_only)
        return ZeroAdam(inner) if built.rescales else built

    @contextmanager
    def scaled_learning_rates(
        self, module_of: Mapping[int, str], multipliers: Mapping[str, float]
    ) -> Iterator[None]:
        inner = self.optimizer.optim
        groups = inner.param_groups
        own = {id(parameter) for group in groups for parameter in group['params']}
        with super().scaled_learning_rates(module_of, multipliers):
            inner.param_groups = [
                dict(part, params=[p for p in part['params'] if id(p) in own])
                for part in self.optimizer.param_groups
            ]
            try:
                yield
            finally:
                inner.param_groups = groups

    def gather(self, state: dict) -> dict:
        return state  # Reading it from MMEngine's ZeRO is a collective.

    def load(self, write: Callable[[dict], None], state: dict) -> None:
        # ZeRO's own loading keeps a second state that is never updated, and removes
        # what other ranks need from its argument.
        write(dict(state, state={}))
        pairs = indexed(state, self.optimizer)
        saved = {p: state['state'][i] for i, p in pairs if i in state['state']}
        inner = self.optimizer.optim
        local = inner.state_dict()
        pairs = indexed(local, inner)
        local['state'] = {i: saved[p] for i, p in pairs if p in saved}
        inner.load_state_dict(local)


class SlicesState(ShardedState):
    """Optimizer of a :class:`FullyShardedModel`: each rank has slices of tensors."""

    def build_preconditioner(self, *, measures_only: bool) -> Preconditioner:
        built = super().build_preconditioner(measures_only=measures_only)
        return ShardedAdam(self.optimizer) if built.rescales else built

    def gather(self, state: dict) -> dict:
        own = state['state']
        return state | dict(state={i: gather_tensors(own[i]) for i in sorted(own)})

    def load(self, write: Callable[[dict], None], state: dict) -> None:
        slices = {
            index: {
                # The number of steps has no dimensions.
                name: shard_like(value, parameter)
                if isinstance(value, Tensor) and value.dim()
                else value
                for name, value in state['state'][index].items()
            }
            for index, parameter in indexed(state, self.optimizer)
            if index in state['state']
        }
        write(state | dict(state=slices))


def check_has_ranks(settings: Mapping | None) -> None:
    """Check that there are ranks to divide moments over.

    Args:
        settings: ``optim_wrapper.optimizer`` of a config.

    Raises:
        ValueError: If ZeRO-1 is to train without a process group.
    """
    is_zero = type_name((settings or {}).get('type')) == 'ZeroRedundancyOptimizer'
    if is_zero and not dist.is_initialized():
        raise ValueError(
            "optimizer.type='ZeroRedundancyOptimizer' divides moments over several "
            'ranks; this run has one. Start more ranks (tools/dist_train.sh CONFIG 2), '
            'or use its optimizer_type as type'
        )


def indexed(state: dict, optimizer: Optimizer) -> list[tuple[int, nn.Parameter]]:
    """Return the parameters of an optimizer with their indices in a state of it."""
    indices = [index for each in state['param_groups'] for index in each['params']]
    groups = optimizer.param_groups
    parameters = [parameter for group in groups for parameter in group['params']]
    return list(zip(indices, parameters, strict=True))


def state_of(optimizer: Optimizer) -> OptimizerState:
    """Return how the state of an optimizer is held."""
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        return ZeroState(optimizer)
    groups = optimizer.param_groups
    if any(isinstance(p, DTensor) for group in groups for p in group['params']):
        return SlicesState(optimizer)
    return OptimizerState(optimizer)
