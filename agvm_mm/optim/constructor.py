"""Constructor of the AGVM optimizer wrappers."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn
from torch.optim import Optimizer

from agvm_mm.method.modules import assign_modules
from agvm_mm.optim.wrapper import AGVMMixin
from agvm_mm.preflight import (
    check_base_constructor,
    check_one_optimizer,
    check_options_are_read,
    check_several_modules,
    check_wrapper_type,
)
from agvm_mm.validation import resolve_type, suggests_arguments, type_name

# Values of a group that hold one entry for each of its parameters.
LISTS = ('params', 'param_names')


class OptionsRead(dict):
    """Dict that remembers which keys were asked for.

    Constructors do not say which keys of ``paramwise_cfg`` they know, and they ignore
    all others.

    Attributes:
        asked: The keys. A constructor that iterates over the dict asks for all.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.given = list(options)
        self.asked: set[str] = set()

    def __getattr__(self, key: str) -> Any:
        if dict.__contains__(self, key):
            return self[key]
        raise AttributeError(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(key)
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """See :meth:`dict.get`."""
        self.asked.add(key)
        return super().get(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        """See :meth:`dict.pop`."""
        self.asked.add(key)
        return super().pop(key, *default)

    def __iter__(self) -> Iterator[str]:
        self.asked.update(self.given)
        return super().__iter__()

    def keys(self) -> Iterable[str]:
        """See :meth:`dict.keys`."""
        self.asked.update(self.given)
        return super().keys()

    def items(self) -> Iterable[tuple[str, Any]]:
        """See :meth:`dict.items`."""
        self.asked.update(self.given)
        return super().items()

    def copy(self) -> dict:
        """Return a plain dict."""
        return dict(self.items())


def split_groups(groups: list[dict], module_of: Mapping[int, str | None]) -> list[dict]:
    """Split parameter groups by module, and merge those whose settings are equal.

    With ``paramwise_cfg`` MMEngine makes one group per parameter. With fewer groups the
    optimizer updates many parameters in one call.

    Args:
        groups: Parameter groups in the form of ``torch.optim``.
        module_of: Module name by ``id`` of the parameter.

    Returns:
        New groups with the key 'module', in the order of first appearance.
    """
    split: dict[tuple, dict] = {}
    for group in groups:
        shared = {key: value for key, value in group.items() if key not in LISTS}
        lists = [key for key in LISTS if key in group]
        for index, parameter in enumerate(group['params']):
            settings = dict(shared, module=module_of[id(parameter)])
            key = tuple(sorted((name, repr(value)) for name, value in settings.items()))
            into = split.setdefault(key, {name: [] for name in lists} | settings)
            for name in lists:
                into[name].append(group[name][index])
    return list(split.values())


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
@suggests_arguments()
class AGVMOptimWrapperConstructor:
    """Constructor that splits the parameter groups of another one by module.

    Another constructor, ``base_constructor``, builds the optimizer, so that each
    parameter has the learning rate and weight decay that it has without AGVM. Then each
    parameter group is split so that it holds parameters of one module, whose name it
    has under the key 'module' (None for frozen parameters that belong to no module).

    Args:
        optim_wrapper_cfg: As in MMEngine. In addition to the arguments of the wrapper
            it may hold ``base_constructor``, the name or class of the other
            constructor, by default MMEngine's ``DefaultOptimWrapperConstructor``; and
            ``modules``, a dict of lists of parameter-name prefixes by module name that
            replaces the default split (see :func:`.default_modules`).
        paramwise_cfg: As the other constructor takes it. Defaults to None.

    Raises:
        KeyError: If there is no such other constructor.
        TypeError: If ``type`` is not an AGVM wrapper, or the other constructor builds
            several optimizers.
        ValueError: If the other constructor does not read a key of ``paramwise_cfg``,
            there are fewer than two modules, or they do not cover each trainable
            parameter exactly once; see :func:`agvm_mm.method.modules.assign_modules`.

    Example:
        >>> optim_wrapper = dict(
        ...     type='AGVMOptimWrapper',
        ...     constructor='AGVMOptimWrapperConstructor',
        ...     base_constructor='LearningRateDecayOptimizerConstructor',
        ...     paramwise_cfg=dict(decay_rate=0.7, num_layers=6),
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     modules=dict(backbone=['backbone', 'neck'], heads=['roi_head']),
        ... )
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        self.optim_wrapper_cfg = dict(optim_wrapper_cfg)
        self.modules = self.optim_wrapper_cfg.pop('modules', None)
        kind = self.optim_wrapper_cfg.get('type')
        found = resolve_type(kind, OPTIM_WRAPPERS)
        check_wrapper_type(kind, found, expected=AGVMMixin)
        base = self.optim_wrapper_cfg.pop(
            'base_constructor', 'DefaultOptimWrapperConstructor'
        )
        self.base = resolve_type(base, OPTIM_WRAPPER_CONSTRUCTORS)
        check_base_constructor(base, self.base, own=type(self))
        # Of the same type as the config's, whose keys may be read as attributes.
        self.base_cfg = type(optim_wrapper_cfg)(type='OptimWrapper')
        if 'optimizer' in self.optim_wrapper_cfg:
            self.base_cfg['optimizer'] = self.optim_wrapper_cfg.pop('optimizer')
        self.paramwise_cfg = paramwise_cfg

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer and its wrapper for a model, wrapped in DDP or not."""
        if hasattr(model, 'module'):
            model = model.module
        module_of_name = assign_modules(model, self.modules)
        check_several_modules(module_of_name)
        optimizer = self._build_optimizer(model)
        module_of = {
            id(parameter): module_of_name.get(name)
            for name, parameter in model.named_parameters()
        }
        groups = split_groups(optimizer.param_groups, module_of)
        optimizer.param_groups.clear()
        for group in groups:
            optimizer.add_param_group(group)
        return OPTIM_WRAPPERS.build(
            dict(self.optim_wrapper_cfg), default_args=dict(optimizer=optimizer)
        )

    def _build_optimizer(self, model: nn.Module) -> Optimizer:
        """Build the optimizer as the other constructor does."""
        options = self.paramwise_cfg
        if isinstance(options, dict):
            options = OptionsRead(options)
        constructor = self.base(optim_wrapper_cfg=self.base_cfg, paramwise_cfg=options)
        wrapper = constructor(model)
        check_one_optimizer('AGVMOptimWrapperConstructor', wrapper)
        if isinstance(options, OptionsRead):
            check_options_are_read(type_name(self.base), options.given, options.asked)
        return wrapper.optimizer
