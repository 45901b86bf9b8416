"""Which parameter belongs to which module of the network."""

from collections.abc import Mapping, Sequence

from torch import nn

from agvm_mm.validation import did_you_mean

# A two-stage detector keeps its box and mask heads below this child; each of them
# has a gradient variance of its own.
SPLIT_CHILDREN = ('roi_head',)


def has_prefix(name: str, prefix: str) -> bool:
    """Whether a dotted name is the prefix itself or lies below it.

    'neck' is a prefix of 'neck.conv.weight' but not of 'bottleneck.weight'.
    """
    return name == prefix or name.startswith(prefix + '.')


def default_modules(model: nn.Module) -> dict[str, list[str]]:
    """Split a detector or segmenter into its top-level children.

    Each child with trainable parameters is a module under its own name, and
    ``roi_head`` is split further into its children (``bbox_head``,
    ``mask_head``, ...). A trainable parameter that hangs directly on the model is
    a module of its own.

    Args:
        model (nn.Module): The network, not wrapped.

    Returns:
        dict[str, list[str]]: Prefixes of parameter names by module name.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    top_level = {name.split('.')[0] for name in names}
    modules: dict[str, list[str]] = {}
    for name in names:
        child, *rest = name.split('.')
        module = prefix = child
        if child in SPLIT_CHILDREN:
            prefix = f'{child}.{rest[0]}'
            if len(rest) > 1:
                module = prefix if rest[0] in top_level else rest[0]
        prefixes = modules.setdefault(module, [])
        if prefix not in prefixes:
            prefixes.append(prefix)
    return modules


def assign_modules(
    model: nn.Module, modules: Mapping[str, Sequence[str]] | None = None
) -> dict[str, str]:
    """Give every parameter of a model the name of its module.

    Args:
        model (nn.Module): The network, not wrapped in DDP.
        modules (Mapping[str, Sequence[str]], optional): Prefixes of parameter
            names by module name, matched at dots and never inside a name.
            Defaults to None, the split of :func:`default_modules`.

    Returns:
        dict[str, str]: Module name by parameter name, in the order of
        ``model.named_parameters()``. A frozen parameter that lies in no module is
        not in it; each trainable one is.

    Raises:
        TypeError: If ``modules`` is not a mapping of names to lists of prefixes.
        ValueError: If a prefix matches nothing, a parameter lies in two modules, a
            module has no trainable parameter, or a trainable parameter lies in no
            module.
    """
    if modules is None:
        modules = default_modules(model)
    _check_form(modules)
    trainable = {
        name: parameter.requires_grad for name, parameter in model.named_parameters()
    }
    assigned: dict[str, str] = {}
    for module, prefixes in modules.items():
        for prefix in prefixes:
            matched = [name for name in trainable if has_prefix(name, prefix)]
            if not matched:
                raise ValueError(_matches_nothing(module, prefix, list(trainable)))
            for name in matched:
                if name in assigned:
                    raise ValueError(
                        f"modules: parameter '{name}' lies in '{assigned[name]}' and "
                        f"again under prefix '{prefix}' of '{module}'; prefixes must "
                        'not overlap'
                    )
                assigned[name] = module
        if not any(trainable[name] for name in assigned if assigned[name] == module):
            raise ValueError(
                f"modules: '{module}' has no trainable parameter; leave it out"
            )
    missing = [name for name in trainable if trainable[name] and name not in assigned]
    if missing:
        raise ValueError(
            f'modules: {len(missing)} trainable parameters lie in no module, such as '
            f'{", ".join(missing[:3])}; every one must, add a module with the prefixes '
            f'{", ".join(sorted({name.split(".")[0] for name in missing}))}'
        )
    return {name: assigned[name] for name in trainable if name in assigned}


def _check_form(modules: object) -> None:
    if not isinstance(modules, Mapping) or not modules:
        raise TypeError(
            'modules must be a dict such as dict(head=["neck", "bbox_head"]), got '
            f'{modules!r}'
        )
    for module, prefixes in modules.items():
        is_list = isinstance(prefixes, Sequence) and not isinstance(prefixes, str)
        if not is_list or not prefixes:
            raise TypeError(
                f"modules['{module}'] must be a list of parameter-name prefixes, got "
                f'{prefixes!r}'
            )


def _matches_nothing(module: str, prefix: str, names: list[str]) -> str:
    known = {'.'.join(name.split('.')[:depth]) for name in names for depth in (1, 2)}
    children = sorted({name.split('.')[0] for name in names})
    return (
        f"modules['{module}']: no parameter has the prefix '{prefix}'. The model has "
        f'{", ".join(children)}.{did_you_mean(prefix, sorted(known))}'
    )
