"""Constructor of the AGVM optimizer wrappers."""

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from agvm_mm.modules import assign_modules
from agvm_mm.optim.agvm_wrapper import AGVMMixin
from agvm_mm.preflight import check_wrapper_type
from agvm_mm.validation import suggests_arguments


def merge_groups(groups: list[dict]) -> list[dict]:
    """Merge parameter groups whose settings are equal.

    With ``paramwise_cfg`` MMEngine makes one group per parameter. With fewer groups the
    optimizer updates many parameters in one call.

    Args:
        groups: Parameter groups in the form of ``torch.optim``.

    Returns:
        New groups, in the order of first appearance.
    """
    merged: dict[tuple, dict] = {}
    for group in groups:
        settings = {key: value for key, value in group.items() if key != 'params'}
        key = tuple(sorted((name, repr(value)) for name, value in settings.items()))
        into = merged.setdefault(key, dict(params=[], **settings))
        into['params'].extend(group['params'])
    return list(merged.values())


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
@suggests_arguments()
class AGVMOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Default constructor of MMEngine that also labels parameter groups by module.

    Each parameter group holds parameters of one module and has the module's name under
    the key 'module' (None for frozen parameters that belong to no module).

    Args:
        optim_wrapper_cfg: As in MMEngine. In addition to the arguments of the wrapper
            it may hold ``modules``, a dict of lists of parameter-name prefixes by
            module name that replaces the default split (see
            :func:`agvm_mm.modules.default_modules`).
        paramwise_cfg: As in MMEngine. Defaults to None.

    Raises:
        TypeError: If ``type`` is not an AGVM wrapper.
        ValueError: If the modules do not cover each trainable parameter exactly once;
            see :func:`agvm_mm.modules.assign_modules`.

    Example:
        >>> optim_wrapper = dict(
        ...     type='AGVMOptimWrapper',
        ...     constructor='AGVMOptimWrapperConstructor',
        ...     optimizer=dict(type='SGD', lr=0.2263, momentum=0.9),
        ...     modules=dict(backbone=['backbone', 'neck'], heads=['roi_head']),
        ... )
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.modules = self.optim_wrapper_cfg.pop('modules', None)
        kind = self.optim_wrapper_cfg.get('type')
        found = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
        check_wrapper_type(kind, found, expected=AGVMMixin)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer and its wrapper for a model, wrapped in DDP or not."""
        if hasattr(model, 'module'):
            model = model.module
        module_of_name = assign_modules(model, self.modules)
        module_of = {
            id(parameter): module_of_name.get(name)
            for name, parameter in model.named_parameters()
        }
        groups: list[dict] = []
        if self.paramwise_cfg:
            self.add_params(groups, model)
        else:
            groups = [dict(params=[parameter]) for parameter in model.parameters()]
        for group in groups:
            group['module'] = module_of[id(group['params'][0])]
        optimizer = OPTIMIZERS.build(
            dict(self.optimizer_cfg, params=merge_groups(groups))
        )
        return OPTIM_WRAPPERS.build(
            dict(self.optim_wrapper_cfg), default_args=dict(optimizer=optimizer)
        )
