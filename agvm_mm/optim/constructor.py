"""Builds an optimizer whose parameter groups know their module."""

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from agvm_mm.validation import suggests_arguments
from agvm_mm.modules import assign_modules
from agvm_mm.optim.agvm_wrapper import AGVMMixin


def merge_groups(groups: list[dict]) -> list[dict]:
    """Join parameter groups that differ in nothing but their parameters.

    MMEngine makes one group for each parameter under ``paramwise_cfg``; fewer
    groups let the optimizer update many parameters in one call.

    Args:
        groups (list[dict]): Groups as ``torch.optim`` takes them.

    Returns:
        list[dict]: New groups, in the order of first appearance.
    """
    merged: dict[tuple, dict] = {}
    for group in groups:
        settings = {key: value for key, value in group.items() if key != 'params'}
        key = tuple(sorted((name, repr(value)) for name, value in settings.items()))
        into = merged.setdefault(key, dict(params=[], **settings))
        into['params'].extend(group['params'])
    return list(merged.values())


def check_wrapper_type(kind: str | type | None) -> None:
    """Refuse to build a wrapper that would not modulate anything.

    Raises:
        TypeError: If it is not one of AGVM's wrappers.
    """
    found = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
    if found is not None and issubclass(found, AGVMMixin):
        return
    hint = ''
    if kind == 'AmpOptimWrapper':
        hint = (
            ". MMDetection's and MMSegmentation's own --amp overwrites the type: "
            "leave the flag out and set type='AGVMAmpOptimWrapper', or use --amp of "
            "agvm_mm's tools/train.py"
        )
    raise TypeError(
        'AGVMOptimWrapperConstructor builds AGVMOptimWrapper or AGVMAmpOptimWrapper, '
        f'got optim_wrapper.type={kind!r}{hint}'
    )


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
@suggests_arguments()
class AGVMOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor, with the module of each parameter group.

    Each group of the optimizer holds parameters of one module and carries its name
    under the key 'module' (None for frozen parameters that lie in no module).
    ``paramwise_cfg`` works as in MMEngine.

    Args:
        optim_wrapper_cfg (dict): As in MMEngine. Besides the arguments of the
            wrapper it may hold ``modules``, a dict of lists of parameter-name
            prefixes by module name, in place of the default split (see
            :func:`agvm_mm.modules.default_modules`).
        paramwise_cfg (dict, optional): As in MMEngine. Defaults to None.

    Raises:
        TypeError: If ``type`` is not one of AGVM's wrappers.
        ValueError: If the modules do not cover each trainable parameter once; see
            :func:`agvm_mm.modules.assign_modules`.
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.modules = self.optim_wrapper_cfg.pop('modules', None)
        check_wrapper_type(self.optim_wrapper_cfg.get('type'))

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer and its wrapper for a model, in DDP or not."""
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
