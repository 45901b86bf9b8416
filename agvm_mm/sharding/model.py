"""Model whose parameters, gradients and optimizer states are divided over the ranks."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.hooks import RemovableHandle

from agvm_mm.engine import StepsOfDDP
from agvm_mm.estimators.reductions import local
from agvm_mm.sharding.gradients import ShardedGradients
from agvm_mm.validation import suggests_arguments

try:
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:  # Before torch 2.6; FullyShardedModel says so.
    FSDPModule = DTensor = ()

NEEDED = ('set_custom_reduce_scatter', 'set_reduce_scatter_unused_params')
SMALLEST_UNIT = 0.01
"""Share of all parameters from which a part of the backbone is a unit by default."""
SMALLEST_ON_META = 2**20
"""Elements of a parameter from which :func:`parameters_on_meta` gives it no memory."""


@MODEL_WRAPPERS.register_module()
@suggests_arguments(
    advice=dict(
        find_unused_parameters='All ranks have to run all units',
        offload_policy='Nothing is offloaded to the CPU',
        cpu_offload='Nothing is offloaded to the CPU',
        mp_policy='Parameters and gradients stay in float32',
    ),
)
class FullyShardedModel(StepsOfDDP, nn.Module):
    """Model wrapper that divides parameters, gradients and moments over the ranks.

    Takes the place of ``MMDistributedDataParallel`` (torch's ``fully_shard``, FSDP2).
    Each rank holds a slice of each parameter. The parameters of a unit are gathered for
    its forward pass and again for its backward pass. Checkpoints are those of the plain
    model.

    Args:
        module: Network; initialized and made equal on all ranks before it is divided.
        units: Names of submodules to gather on their own, such as 'backbone.layer1'.
            Each must run by its ``forward``, once in every forward pass of every rank.
            The other parameters are gathered for the whole pass. Defaults to None: the
            neck, and the parts of the backbone that have at least 1% of the parameters.

    Attributes:
        process_group: Group of all ranks.

    Raises:
        RuntimeError: If torch lacks what AGVM needs.
        TypeError: If the network initializes its weights in a way of its own.
        ValueError: If there is one rank, no such submodule, or a parameter that cannot
            be divided.

    Example:
        >>> model_wrapper_cfg = dict(
        ...     type='FullyShardedModel',
        ...     units=['backbone.layer3', 'backbone.layer4', 'neck'],
        ... )
    """

    def __init__(self, module: nn.Module, units: Sequence[str] | None = None) -> None:
        super().__init__()
        check_torch()
        names = default_units(module) if units is None else list(units)
        check_network(module, names)
        self._whole: dict[str, Tensor | None] | None = None
        self._syncs = True
        self._has_run = False
        device = get_device()
        on_meta = any(parameter.is_meta for parameter in module.parameters())
        if not on_meta:
            device = next(module.parameters()).device.type
            if isinstance(module, BaseModule):
                module.init_weights()  # The Runner does it later: then it does nothing.
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)
        mesh = dist.init_device_mesh(device, (dist.get_world_size(),))
        self.process_group = mesh.get_group()
        # Submodules first, the innermost before those around them.
        for name in [*sorted(names, key=lambda name: -name.count('.')), '']:
            unit = module.get_submodule(name)
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        module.set_reduce_scatter_unused_params(True)
        self.module = module
        for child in module.modules():
            child.register_load_state_dict_pre_hook(shard_loaded)
        # torch sets an attribute of the hook, which a bound method does not have.
        module.register_state_dict_post_hook(lambda *args: self._complete(args[1]))
        if on_meta:
            materialize(module, device)

    def gradient_source(self, comm_hook: str | None = None) -> ShardedGradients:
        """Return what shows the gradients of all ranks to an estimator.

        Raises:
            ValueError: If there is a ``comm_hook``.
        """
        if comm_hook is not None:
            raise ValueError(
                f"comm_hook='{comm_hook}' is a hook of DistributedDataParallel; remove "
                'it with FullyShardedModel'
            )
        return ShardedGradients(self.units(), self.process_group)

    def units(self) -> dict[str, FSDPModule]:
        """Return the units by name; '' has the rest."""
        modules = self.module.named_modules()
        return {name: unit for name, unit in modules if isinstance(unit, FSDPModule)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network; gradients are reduced unless in :meth:`no_sync`.

        Raises:
            RuntimeError: If a unit does not run by its ``forward``.
        """
        self._has_run = True
        # It counts in the backward pass, when MMEngine has left the context.
        self.module.set_requires_gradient_sync(self._syncs)
        try:
            return self.module(*args, **kwargs)
        except RuntimeError as error:
            if 'DTensor' not in str(error):
                raise
            raise RuntimeError(
                'FullyShardedModel: parameters of a unit are used while they are '
                'divided, which happens if a unit does not run by its forward; the '
                f'units are {", ".join(filter(None, self.units()))}; name others in '
                'model_wrapper_cfg.units'
            ) from error

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """Run a step of ``MMDistributedDataParallel``.

        Raises:
            TypeError: If the wrapper cannot save a divided state.
        """
        check_gathers(optim_wrapper)
        return super().train_step(data, optim_wrapper)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Have the backward passes of this forward pass keep their gradients."""
        self._syncs = False
        try:
            yield
        finally:
            self._syncs = True

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, also those that wait to be reduced, on all ranks at once."""
        for unit in self.units().values():
            unit.unshard()
            unit.zero_grad(set_to_none)
            unit.reshard()
        super().zero_grad(set_to_none)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Make ``module.state_dict()`` whole on rank 0; all ranks have to enter."""
        self._whole = {}  # The hook leaves the state as it is.
        try:
            self._whole = gather_tensors(self.module.state_dict())
            yield
        finally:
            self._whole = None

    def _complete(self, state_dict: dict[str, Tensor]) -> None:
        if self._whole is not None:
            state_dict.update(self._whole)
            return
        if self._has_run:  # Before, the Runner makes all ranks equal.
            raise RuntimeError(
                'the weights are divided over the ranks, and all of them have to take '
                'part when they are saved: save checkpoints by '
                "default_hooks=dict(checkpoint=dict(type='AtomicCheckpointHook'))"
            )
        for name, value in state_dict.items():
            if isinstance(value, DTensor):
                state_dict[name] = value.full_tensor().cpu()


def parameters_on_meta() -> RemovableHandle:
    """Have modules made from now on take no memory for their large parameters.

    ``FullyShardedModel`` initializes slices of them on each rank.

    Returns:
        A handle; ``remove()`` ends it.
    """

    def to_meta(module: nn.Module, name: str, own: nn.Parameter) -> nn.Parameter:
        small = own.numel() < SMALLEST_ON_META
        return own if small else nn.Parameter(own.to('meta'), own.requires_grad)

    return register_module_parameter_registration_hook(to_meta)


@torch.no_grad()
def materialize(module: nn.Module, device: str) -> None:
    """Give the slices of a network on the meta device memory, and initialize them.

    Raises:
        RuntimeError: If neither ``reset_parameters`` of a layer nor ``init_weights`` of
            the network sets a parameter, or a buffer is on the meta device.
    """
    lost = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if lost:
        raise RuntimeError(
            f'FullyShardedModel: the buffer {lost[0]} is on the meta device, which has '
            'no values; build the network inside of parameters_on_meta() only'
        )
    layers = [
        child
        for child in module.modules()
        if any(parameter.is_meta for parameter in child.parameters(recurse=False))
    ]
    for layer in layers:
        kept = [local(t).clone() for t in own_tensors(layer)]
        layer.to_empty(device=device, recurse=False)
        for tensor, value in zip(own_tensors(layer), kept, strict=True):
            local(tensor).copy_(torch.tensor(math.nan) if value.is_meta else value)
    with torch.random.fork_rng():
        # Each rank draws its own slices.
        torch.manual_seed(torch.initial_seed() + dist.get_rank())
        for layer in layers:
            if hasattr(layer, 'reset_parameters'):
                layer.reset_parameters()
        if isinstance(module, BaseModule):
            module.init_weights()
    for buffer in module.buffers():
        dist.broadcast(buffer, 0)
    for name, parameter in module.named_parameters():
        if local(parameter).isnan().any():
            raise RuntimeError(
                f'FullyShardedModel: nothing initializes {name}, which was on the meta '
                'device; give its module a reset_parameters method or init_cfg'
            )


def own_tensors(module: nn.Module) -> list[Tensor]:
    """Return parameters and buffers of a module without those of its children."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def shard_loaded(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Divide the whole tensors that a module is about to load."""
    for name, own in module.named_parameters(recurse=False):
        if prefix + name in state_dict:
            state_dict[prefix + name] = shard_like(state_dict[prefix + name], own)


def shard_like(value: Any, own: Tensor) -> Any:
    """Return a whole tensor, which all ranks have, divided like a parameter.

    What has another shape, such as the number of steps, stays as it is.
    """
    if not isinstance(own, DTensor) or isinstance(value, DTensor):
        return value
    if getattr(value, 'shape', None) != own.shape:
        return value
    mesh, placements = own.device_mesh, own.placements
    return distribute_tensor(value.to(own.device), mesh, placements, src_data_rank=None)


def gather_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors as a whole on the CPU of rank 0, None on other ranks.

    All ranks have to call this. Undivided state stays unchanged.
    """
    whole = {}
    for name, value in tensors.items():
        if isinstance(value, DTensor):
            value = value.full_tensor()
            value = value.cpu() if is_main_process() else None
        whole[name] = value
    return whole


def default_units(module: nn.Module) -> list[str]:
    """Return the neck, and large parts of the backbone, by name."""
    modules = dict(module.named_modules())
    names = [name for name in modules if name.startswith('backbone.')]
    names = [
        name
        for name in names
        if name.count('.') == 1
        or (name.count('.') == 2 and not runs_forward(modules[name.rpartition('.')[0]]))
    ]
    total = count(module)
    names = [name for name in names if count(modules[name]) >= SMALLEST_UNIT * total]
    if 'neck' in modules and count(modules['neck']):
        names.append('neck')
    return [name for name in names if runs_forward(modules[name])]


def runs_forward(module: nn.Module) -> bool:
    """Return whether a module can be called; a list of modules cannot."""
    return type(module).forward is not nn.Module.forward


def count(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def missing_methods() -> list[str]:
    """Return what FSDP2 of this torch lacks."""
    return [name for name in NEEDED if not hasattr(FSDPModule, name)]


def check_gathers(optim_wrapper: OptimWrapper) -> None:
    """Check that a wrapper can save a state that is divided over the ranks.

    Raises:
        TypeError: If it does not gather the state.
    """
    if not hasattr(optim_wrapper, 'gathered'):
        raise TypeError(
            f'{type(optim_wrapper).__name__} cannot save a state that is divided over '
            "the ranks; use type='AGVMOptimWrapper' or 'AGVMAmpOptimWrapper', to train "
            "the same with agvm=dict(type='VarianceSyncHook', act=False)"
        )


def check_torch() -> None:
    """Check that torch can divide a model so that AGVM sees its gradients.

    Raises:
        RuntimeError: If it cannot.
        ValueError: If there is one rank.
    """
    missing = missing_methods()
    if missing:
        raise RuntimeError(
            f'FullyShardedModel needs {" and ".join(missing)}, which torch '
            f'{torch.__version__} does not have; torch 2.13 is the first with all. '
            'ZeroRedundancyOptimizer works without'
        )
    if dist.get_world_size() == 1:
        raise ValueError(
            'FullyShardedModel divides a model over several ranks; this run has one. '
            'Start more ranks, or remove model_wrapper_cfg'
        )


def check_network(module: nn.Module, units: Sequence[str]) -> None:
    """Check that a network can be divided into units with these names.

    Raises:
        TypeError: If it initializes its weights in a way of its own.
        ValueError: If it has no such unit, or parameters that cannot be divided.
    """
    kind = type(module)
    # BaseModule initializes once; others would, again, after the model is divided.
    own_init: Callable | None = getattr(kind, 'init_weights', None)
    if own_init not in (None, BaseModule.init_weights):
        raise TypeError(
            f'{kind.__name__}.init_weights may initialize weights again after '
            'FullyShardedModel has divided them; use ZeroRedundancyOptimizer'
        )
    modules = dict(module.named_modules())
    possible = {name for name in modules if name and runs_forward(modules[name])}
    wrong = [name for name in units if name not in possible]
    if wrong:
        raise ValueError(
            f"FullyShardedModel: units has '{wrong[0]}', which is no submodule with a "
            f'forward method; there are {", ".join(default_units(module))}'
        )
    scalars = [name for name, p in module.named_parameters() if not p.dim()]
    if scalars:
        raise ValueError(
            f'FullyShardedModel cannot divide {scalars[0]}, which has no dimensions; '
            'use ZeroRedundancyOptimizer'
        )
    unit_of: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        around = [unit for unit in units if name.startswith(f'{unit}.')]
        unit = max(around, key=len, default='')
        if unit_of.setdefault(id(parameter), unit) != unit:
            raise ValueError(
                f"FullyShardedModel: {name} is shared by the units '{unit}' and "
                f"'{unit_of[id(parameter)]}'; leave one of them out of units"
            )
