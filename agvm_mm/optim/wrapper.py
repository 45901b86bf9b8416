"""Optimizer wrappers that step each module with its own learning rate."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from agvm_mm.engine import ConditionalClipping, backward_passes_left
from agvm_mm.method.modulator import Modulator
from agvm_mm.method.modules import assign_modules
from agvm_mm.optim.agvm import AGVM, MicroBatch, parameters_by_module
from agvm_mm.optim.precision import check_fused_momentum, keep_float32
from agvm_mm.sharding.state import gather_state, is_divided, load_state
from agvm_mm.validation import check_number, suggests_arguments

# Keys of optim_wrapper in a config that are not arguments of the wrapper itself.
CONSTRUCTOR_SETTINGS = ('constructor', 'paramwise_cfg')
MIXED_PRECISION = "For mixed precision set type='AGVMAmpOptimWrapper'"


@OPTIM_WRAPPERS.register_module()
@suggests_arguments(
    *CONSTRUCTOR_SETTINGS,
    advice=dict.fromkeys(('loss_scale', 'dtype', 'use_fsdp'), MIXED_PRECISION),
)
class AGVMOptimWrapper(ConditionalClipping, OptimWrapper):
    """Optimizer wrapper that scales each module's learning rate by its mu.

    Takes the place of MMEngine's ``OptimWrapper``, and ``AGVMAmpOptimWrapper`` that of
    ``AmpOptimWrapper``. ``VarianceSyncHook`` decides how and when it measures. The
    parameter groups stay those of the optimizer: they are split by module while it
    steps. Method: Xue et al., NeurIPS 2022 (arXiv 2210.11078).

    Args:
        modules: Prefixes of parameter names by module name; they replace the default
            split (see :func:`.default_modules`). Defaults to None.
        anchor: Module whose gradient variance the others are matched to; its multiplier
            is 1. Defaults to 'backbone'.
        momentum: Weight of the past in the moving average of the multipliers, in
            [0, 1). Defaults to 0.97.
        ratio_bounds: Smallest and largest ratio of the anchor's variance to a module's;
            multipliers lie between the square roots. Defaults to (0.5, 10.0).
        clip_window: First and last update (from 0, both included) at which
            ``clip_grad`` acts. Defaults to None, always.

    Keyword Args:
        optimizer (Optimizer): SGD, Adam or AdamW; any if the hook has ``act=False``.
        accumulative_counts (int): Micro-batches of one update. Defaults to 1.
        clip_grad (dict | None): As in MMEngine's ``OptimWrapper``; gradients are
            clipped after they have been measured. Defaults to None.

    Attributes:
        agvm: State of the method; None before the hook has made it.

    Raises:
        TypeError: If ``clip_window`` is not a pair of whole numbers.
        ValueError: If it is out of order, or there is no ``clip_grad``.

    Example:
        >>> optim_wrapper = dict(
        ...     type='AGVMOptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.2263, momentum=0.9),
        ... )
        >>> default_hooks = dict(agvm=dict(type='VarianceSyncHook'))
    """

    def __init__(
        self,
        *args,
        modules: Mapping[str, Sequence[str]] | None = None,
        anchor: str = 'backbone',
        momentum: float = 0.97,
        ratio_bounds: tuple[float, float] = (0.5, 10.0),
        clip_window: tuple[int, int] | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_clip_window(clip_window, clips=bool(self.clip_grad_kwargs))
        self.modules = modules
        self.anchor = anchor
        self.momentum = momentum
        self.ratio_bounds = ratio_bounds
        self.clip_window = clip_window
        self.agvm: AGVM | None = None
        self._whole: dict | None = None

    def make_agvm(
        self, model: nn.Module, *, act: bool = True, over_ranks: bool = False
    ) -> AGVM:
        """Make the state of AGVM for a model.

        Args:
            model: Network of the optimizer, not wrapped in DDP.
            act: Whether learning rates are scaled. Defaults to True.
            over_ranks: Whether ranks average their gradients. Defaults to False.

        Raises:
            TypeError: If a setting has the wrong type.
            ValueError: If the model has no such anchor or modules; see
                :func:`.assign_modules`.
        """
        names = assign_modules(model, self.modules)
        parameters = dict(model.named_parameters())
        by_module = parameters_by_module(
            self.optimizer, {id(parameters[n]): module for n, module in names.items()}
        )
        modulator = None
        if act:
            check_several_modules(names)
            modulator = Modulator(
                list(by_module),
                anchor=self.anchor,
                momentum=self.momentum,
                ratio_bounds=self.ratio_bounds,
            )
        self.agvm = AGVM(self.optimizer, by_module, modulator, over_ranks=over_ranks)
        return self.agvm

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """See :meth:`OptimWrapper.optim_context`.

        Raises:
            RuntimeError: If nothing measures gradient variances for this wrapper.
        """
        self._attached()
        with super().optim_context(model):
            yield

    def backward(
        self, loss: Tensor, *, micro_batch: MicroBatch | None = None, **kwargs: Any
    ) -> None:
        """Back-propagate; the estimator sees the gradients of a measured update.

        The loss is that of a micro-batch times its share in the update. Where MMEngine
        accumulates, ``micro_batch`` is None.
        """
        agvm = self._attached()
        if not agvm.is_measured:
            super().backward(loss, **kwargs)
            return
        if micro_batch is None:
            micro_batch = self._micro_batch_of_mmengine(agvm)
        agvm.before_backward(micro_batch, getattr(self, 'loss_scaler', None))
        super().backward(loss, **kwargs)
        agvm.after_backward(micro_batch)

    def step(self, **kwargs) -> None:
        """Update the multipliers, then step with each module's learning rate.

        The measurement comes before clipping, as in the paper.
        """
        agvm = self._attached()
        agvm.finish_measurement()
        with agvm.scaled_learning_rates():
            super().step(**kwargs)
        agvm.num_updates += 1

    def clips_now(self) -> bool:
        """Return whether this update lies in ``clip_window``."""
        window = self.clip_window
        return window is None or window[0] <= self.agvm.num_updates <= window[1]

    def state_dict(self) -> dict:
        """Return the optimizer's state and, under 'agvm', the state of AGVM.

        Raises:
            RuntimeError: If ranks divide the state, outside :meth:`gathered`.
        """
        if self._whole is None and is_divided(self.optimizer):
            raise RuntimeError(
                'the state of the optimizer is divided over the ranks, and all of them '
                'have to take part when it is saved: save checkpoints by '
                "default_hooks=dict(checkpoint=dict(type='AtomicCheckpointHook'))"
            )
        state = super().state_dict() if self._whole is None else self._whole
        return state if self.agvm is None else state | dict(agvm=self.agvm.state_dict())

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a saved state; without that of AGVM, which then starts from 1."""
        state_dict = dict(state_dict)
        saved = state_dict.pop('agvm', None)
        load_state(self.optimizer, super().load_state_dict, state_dict)
        if self.agvm is not None and saved is not None:
            self.agvm.load_state_dict(saved)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Make :meth:`state_dict` complete on rank 0, if ranks divide the state.

        Every rank has to enter this context before rank 0 saves a checkpoint.
        """
        self._whole = gather_state(super().state_dict())
        try:
            yield
        finally:
            self._whole = None

    def _attached(self) -> AGVM:
        if self.agvm is None or self.agvm.estimator is None:
            raise RuntimeError(
                f'nothing measures gradient variances for {type(self).__name__}; add '
                "default_hooks=dict(agvm=dict(type='VarianceSyncHook')) to the config"
            )
        return self.agvm

    def _micro_batch_of_mmengine(self, agvm: AGVM) -> MicroBatch:
        # The factor of MMEngine's own loops.
        weight = self.scale_loss(torch.ones((), dtype=torch.float64)).item()
        images = agvm.images_per_pass / weight
        return MicroBatch(weight, backward_passes_left(self), images)


@OPTIM_WRAPPERS.register_module()
@suggests_arguments(*CONSTRUCTOR_SETTINGS)
class AGVMAmpOptimWrapper(AGVMOptimWrapper, AmpOptimWrapper):
    """:class:`AGVMOptimWrapper` for automatic mixed precision.

    Takes the arguments of MMEngine's ``AmpOptimWrapper`` (``loss_scale``, ``dtype``) in
    addition to its own. In bfloat16 the operators of mmcv, which lack it, run in
    float32.
    """

    def make_agvm(self, model: nn.Module, **kwargs: bool) -> AGVM:
        """See :meth:`AGVMOptimWrapper.make_agvm`."""
        check_fused_momentum(self)
        if self.cast_dtype is torch.bfloat16:
            keep_float32(model)
        return super().make_agvm(model, **kwargs)


def check_clip_window(window: object, clips: bool) -> None:
    """Check the setting ``clip_window``.

    Raises:
        TypeError: If it is not a pair of integers.
        ValueError: If it is out of order, or ``clip_grad`` is not set.
    """
    if window is None:
        return
    if not isinstance(window, Sequence) or len(window) != 2:
        raise TypeError(
            f'clip_window must be a pair (first update, last update), got {window!r}'
        )
    check_number('clip_window[0]', window[0], low=0, integer=True)
    check_number('clip_window[1]', window[1], low=window[0], integer=True)
    if not clips:
        raise ValueError(
            f'clip_window={tuple(window)} without clip_grad clips nothing; add '
            'clip_grad=dict(max_norm=1.0)'
        )


def check_several_modules(module_of_name: Mapping[str, str]) -> None:
    """Check that there are modules to compare with the anchor.

    Raises:
        ValueError: If all parameters, by their names, are of one module.
    """
    modules = set(module_of_name.values())
    if len(modules) < 2:
        parts = dict.fromkeys('.'.join(name.split('.')[:2]) for name in module_of_name)
        raise ValueError(
            'AGVM compares modules of the network with the anchor, but there is '
            f'{", ".join(modules) or "none"} only. Name parts of it: '
            f'optim_wrapper.modules=dict(NAME=[PREFIX, ...], ...) with prefixes such '
            f'as {", ".join(list(parts)[:5])}'
        )


def check_one_optimizer(owner: str, optim_wrapper: object) -> None:
    """Check that a run has a single optimizer, which its owner needs.

    Raises:
        TypeError: If it has several; the message names the owner.
    """
    if isinstance(optim_wrapper, OptimWrapperDict):
        raise TypeError(
            f'{owner} does not support OptimWrapperDict (several optimizers): it needs '
            'one optimizer over all modules'
        )
