"""Assignment of parameters to modules of the network, which share a multiplier."""

from collections.abc import Mapping, Sequence

from torch import nn

from agvm_mm.validation import did_you_mean

# A two-stage detector keeps its box and mask heads in this child. Each head has its own
# gradient variance.
SPLIT_CHILDREN = ('roi_head',)


def has_prefix(name: str, prefix: str) -> bool:
    """Return whether a dotted name is the prefix or begins with it and a dot.

    'neck' is a prefix of 'neck.conv.weight' but not of 'bottleneck.weight'.
    """
    return name == prefix or name.startswith(prefix + '.')


def default_modules(model: nn.Module) -> dict[str, list[str]]:
    """Split a detector or segmenter into its top-level children.

    Each child with trainable parameters is a module under its own name, and
    ``roi_head`` is split further into its children (``bbox_head``, ``mask_head``,
    ...). A trainable parameter of the model itself is a separate module.

    Args:
        model: Network, not wrapped in DDP.

    Returns:
        Prefixes of parameter names by module name.
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
    """Assign every trainable parameter of a model to exactly one module.

    Args:
        model: Network, not wrapped in DDP.
        modules: Prefixes of parameter names by module name. A prefix matches whole
            dot-separated parts of a name. Defaults to None, the split of
            :func:`default_modules`.

    Returns:
        Module name by parameter name, in the order of ``model.named_parameters()``.
        Frozen parameters that belong to no module are left out.

    Raises:
        TypeError: If ``modules`` is not a mapping of names to lists of prefixes.
        ValueError: If a prefix matches nothing, a parameter belongs to two modules, a
            module has no trainable parameter, or a trainable parameter belongs to no
            module.
    """
    if modules is None:
        modules = default_modules(model)
    _check_modules(modules)
    trainable = {
        name: parameter.requires_grad for name, parameter in model.named_parameters()
    }
    assigned = _match_prefixes(modules, list(trainable))
    for module in modules:
        if not any(trainable[name] for name, own in assigned.items() if own == module):
            raise ValueError(
                f"modules: '{module}' has no trainable parameter; leave it out"
            )
    missing = [name for name in trainable if trainable[name] and name not in assigned]
    if missing:
        raise ValueError(
            f'modules: {len(missing)} trainable parameters belong to no module, such '
            f'as {", ".join(missing[:3])}; add a module with the prefixes '
            f'{", ".join(_children(missing))}'
        )
    return {name: assigned[name] for name in trainable if name in assigned}


def _check_modules(modules: object) -> None:
    """Check that modules is a dict of non-empty lists."""
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


def _match_prefixes(
    modules: Mapping[str, Sequence[str]], names: list[str]
) -> dict[str, str]:
    """Return the module of each parameter name that has one of the prefixes."""
    assigned: dict[str, str] = {}
    pairs = [(module, prefix) for module in modules for prefix in modules[module]]
    for module, prefix in pairs:
        matched = [name for name in names if has_prefix(name, prefix)]
        if not matched:
            known = {'.'.join(n.split('.')[:depth]) for n in names for depth in (1, 2)}
            raise ValueError(
                f"modules['{module}']: no parameter has the prefix '{prefix}'. The "
                f'model has {", ".join(_children(names))}.'
                f'{did_you_mean(prefix, sorted(known))}'
            )
        for name in matched:
            if name in assigned:
                raise ValueError(
                    f"modules: parameter '{name}' belongs to '{assigned[name]}' and "
                    f"also has the prefix '{prefix}' of '{module}'; prefixes must not "
                    'overlap'
                )
            assigned[name] = module
    return assigned


def _children(names: list[str]) -> list[str]:
    """Return the top-level children of the model that contain the parameters."""
    return sorted({name.split('.')[0] for name in names})
