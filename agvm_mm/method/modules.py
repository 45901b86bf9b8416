"""Assignment of parameters to modules of the network, which share a multiplier."""

from collections.abc import Mapping, Sequence

from torch import nn

from agvm_mm.validation import did_you_mean

# Attributes of a whole detector or segmenter. Some backbones have a backbone as well,
# and language models are models: MMEngine gives both a train_step.
MODEL = ('train_step', 'backbone')
# Of a head like that of Mask2Former.
MASK_TRANSFORMER = ('pixel_decoder', 'transformer_decoder')
# Of a transformer like DETR, and inputs of the encoder among its layers and parameters.
ENCODER_DECODER = ('encoder', 'decoder')
ENCODER_INPUTS = ('level_embed', 'text_feat_map')


def default_modules(model: nn.Module) -> dict[str, list[str]]:
    """Split a detector or segmenter into modules.

    Each top-level child with trainable parameters is a module under its own name, and
    so is each trainable parameter of the model itself, with these exceptions:

    - A child that is a whole model (``detector``, ``student``) and ``roi_head`` are
      opened: their children are modules.
    - A list of as many children as the model or ``roi_head`` has stages
      (``num_stages``) is a cascade: each stage is a module, such as ``bbox_head.0``.
    - A head with a pixel decoder and a transformer decoder (Mask2Former) is opened into
      ``pixel_decoder``, ``transformer_decoder`` with its embeddings and input
      projections, and ``predictors``.
    - In a model with an encoder and a decoder (DETR), single layers, embeddings and
      parameters of the model itself join the ``decoder``, or the ``encoder`` if they
      describe its input.

    Children of opened ones keep their own name where it is unique, else they have the
    names of both, such as ``roi_head.bbox_head``.

    Args:
        model: Network, not wrapped in DDP.

    Returns:
        Prefixes of parameter names by module name.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parts = dict.fromkeys(_part_of(model, name) for name in names)
    owners: dict[str, set[str]] = {}
    for owner, module, _ in parts:
        owners.setdefault(module, set()).add(owner)
    modules: dict[str, list[str]] = {}
    for owner, module, prefix in parts:
        name = f'{owner}.{module}' if owner and len(owners[module]) > 1 else module
        modules.setdefault(name, []).append(prefix)
    return modules


def _has(member: object, names: Sequence[str]) -> bool:
    """Return whether an object has all of the attributes."""
    return all(hasattr(member, name) for name in names)


def _part_of(model: nn.Module, name: str) -> tuple[str, str, str]:
    """Return the owner of a parameter, its module there, and the prefix of the latter.

    The owner is the dotted name of the opened child that holds it, '' for the model.
    """
    owner, path, names = model, [], name.split('.')
    while len(names) > 1:
        child = getattr(owner, names[0])
        known = _has(child, MODEL) or _has(child, MASK_TRANSFORMER)
        if not known and names[0] != 'roi_head':
            break
        owner = child
        path.append(names.pop(0))
    module = child = names[0]
    member, stages = getattr(owner, child), getattr(owner, 'num_stages', None)
    if _has(owner, MASK_TRANSFORMER):
        if child != 'pixel_decoder':
            # The second one is that of its input projections.
            prefixes = ('transformer_decoder', 'decoder_')
            of_decoder = child.startswith(prefixes) or _is_embedding(member)
            module = 'transformer_decoder' if of_decoder else 'predictors'
    elif isinstance(member, nn.Parameter) and path and not _has(owner, MODEL):
        return '.'.join(path[:-1]), path[-1], '.'.join([*path, child])
    elif isinstance(member, nn.ModuleList) and len(member) == stages:
        module = child = f'{child}.{names[1]}'
    elif _has(owner, ENCODER_DECODER) and (
        _is_embedding(member) or not list(member.children())
    ):
        module = 'encoder' if child in ENCODER_INPUTS else 'decoder'
    return '.'.join(path), module, '.'.join([*path, child])


def _is_embedding(member: nn.Module | nn.Parameter) -> bool:
    """Return whether a member is a parameter or has none but those of embeddings."""
    if isinstance(member, nn.Parameter):
        return True
    return all(
        isinstance(layer, nn.Embedding)
        for layer in member.modules()
        if list(layer.parameters(recurse=False))
    )


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


def has_sync_bn(model: nn.Module) -> bool:
    """Return whether a model has SyncBN, which couples the ranks."""
    # torch's and mmcv's.
    return any(
        base.__name__ == 'SyncBatchNorm'
        for module in model.modules()
        for base in type(module).__mro__
    )


def trainable_by_module(
    model: nn.Module, modules: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[nn.Parameter]]:
    """Return the trainable parameters of each module by :func:`assign_modules`."""
    parameters = dict(model.named_parameters())
    by_module: dict[str, list[nn.Parameter]] = {}
    for name, module in assign_modules(model, modules).items():
        if parameters[name].requires_grad:
            by_module.setdefault(module, []).append(parameters[name])
    return by_module


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
        # Whole parts: 'neck' is no prefix of 'neck2.weight'.
        matched = [name for name in names if f'{name}.'.startswith(f'{prefix}.')]
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
