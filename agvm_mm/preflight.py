"""Checks before training: everything that refuses a run is here.

The functions do not know the rest of the package. The code that builds a part of a run
hands them its values.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Set

import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.logging import print_log
from mmengine.model import MMSeparateDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from agvm_mm.validation import check_number, did_you_mean, type_name

# Optimizer wrapper


def check_wrapper_type(
    kind: str | type | None, found: type | None, expected: type
) -> None:
    """Check that a config builds one of AGVM's optimizer wrappers.

    Args:
        kind: ``optim_wrapper.type`` of the config.
        found: The class that it names, or None.
        expected: Base class of AGVM's wrappers.

    Raises:
        TypeError: If it does not.
    """
    if isinstance(found, type) and issubclass(found, expected):
        return
    hint = ''
    if type_name(kind) == 'AmpOptimWrapper':
        hint = (
            '. The --amp flag of MMDetection and MMSegmentation overwrites the type: '
            "drop the flag and set type='AGVMAmpOptimWrapper', or use --amp of "
            "agvm_mm's tools/train.py"
        )
    raise TypeError(
        'AGVMOptimWrapperConstructor builds AGVMOptimWrapper or AGVMAmpOptimWrapper, '
        f'got optim_wrapper.type={kind!r}{hint}'
    )


def check_base_constructor(kind: str | type, found: Callable | None, own: type) -> None:
    """Check the constructor whose parameter groups are split by module.

    Args:
        kind: ``optim_wrapper.base_constructor`` of the config.
        found: The class that it names, or None.
        own: The constructor that splits them.

    Raises:
        KeyError: If there is no such constructor.
        ValueError: If it is the one that splits them.
    """
    if found is None:
        registries = (OPTIM_WRAPPER_CONSTRUCTORS,)
        registries += tuple(OPTIM_WRAPPER_CONSTRUCTORS.children.values())
        known = {name for registry in registries for name in registry.module_dict}
        known.discard(own.__name__)
        raise KeyError(
            f'optim_wrapper.base_constructor={kind!r} is not registered; there are: '
            f'{", ".join(sorted(known))}.{did_you_mean(kind, known)}'
        )
    if isinstance(found, type) and issubclass(found, own):
        raise ValueError(
            f'optim_wrapper.base_constructor={kind!r} is the constructor that splits '
            'the groups of another one; name the constructor that the config has '
            'without AGVM, or leave it out'
        )


# Options of DefaultOptimWrapperConstructor. Others derive from it and may ignore some:
# RTMDet's config with a ConvNeXt has options of both.
PARAMWISE_OPTIONS = {
    'bias_decay_mult',
    'bias_lr_mult',
    'bypass_duplicate',
    'custom_keys',
    'dcn_offset_lr_mult',
    'dwconv_decay_mult',
    'flat_decay_mult',
    'norm_decay_mult',
}


def check_options_are_read(
    constructor: str, given: Sequence[str], asked: Set[str]
) -> None:
    """Check that no unknown key of ``paramwise_cfg`` was ignored.

    Args:
        constructor: Name of the constructor that it was given to.
        given: The keys.
        asked: The keys that the constructor looked up.

    Raises:
        ValueError: If it did not look up a key, which is no option of MMEngine either.
    """
    known = PARAMWISE_OPTIONS | asked
    unread = [key for key in given if key not in known]
    if unread:
        raise ValueError(
            f'paramwise_cfg: {constructor} does not read {", ".join(unread)}; it reads '
            f'{", ".join(sorted(asked))}.{did_you_mean(unread[0], asked)} If the '
            'config had another constructor before AGVMOptimWrapperConstructor, such '
            'as LearningRateDecayOptimizerConstructor, name that one as '
            'optim_wrapper.base_constructor'
        )


def check_several_modules(module_of_name: Mapping[str, str]) -> None:
    """Check that there are modules to compare with the anchor.

    Args:
        module_of_name: Module name by parameter name.

    Raises:
        ValueError: If there are fewer than two modules.
    """
    modules = set(module_of_name.values())
    if len(modules) < 2:
        names = list(module_of_name)
        parts = dict.fromkeys('.'.join(name.split('.')[:2]) for name in names)
        raise ValueError(
            'AGVM compares modules of the network with the anchor, but there is '
            f'{", ".join(modules) or "none"} only. Name parts of it: '
            f'optim_wrapper.modules=dict(NAME=[PREFIX, ...], ...) with prefixes such '
            f'as {", ".join(list(parts)[:5])}'
        )


def check_one_optimizer(owner: str, optim_wrapper: object) -> None:
    """Check that a run has a single optimizer.

    Args:
        owner: Name of the hook or loop that needs it.
        optim_wrapper: The optimizer wrapper of the run.

    Raises:
        TypeError: If it has several.
    """
    if isinstance(optim_wrapper, OptimWrapperDict):
        raise TypeError(
            f'{owner} does not support OptimWrapperDict (several optimizers): it needs '
            'one optimizer over all modules'
        )


def check_optim_wrapper(optim_wrapper: object, expected: type) -> None:
    """Check that an optimizer wrapper measures.

    Args:
        optim_wrapper: The optimizer wrapper of the run.
        expected: Base class of the wrappers that do.

    Raises:
        TypeError: If it does not.
    """
    check_one_optimizer('VarianceSyncHook', optim_wrapper)
    if not isinstance(optim_wrapper, expected):
        raise TypeError(
            'VarianceSyncHook needs optim_wrapper=dict(type="AGVMOptimWrapper", '
            'constructor="AGVMOptimWrapperConstructor", ...) or AGVMAmpOptimWrapper, '
            f'got {type(optim_wrapper).__name__}; act=False measures with any wrapper '
            'and scales nothing'
        )


def check_still_frozen(parameters: Iterable[nn.Parameter]) -> None:
    """Check that parameters without a module, which are not modulated, are frozen.

    Args:
        parameters: Parameters that were frozen when the optimizer was built.

    Raises:
        RuntimeError: If one is trained now.
    """
    unfrozen = [tuple(p.shape) for p in parameters if p.requires_grad]
    if unfrozen:
        raise RuntimeError(
            f'{len(unfrozen)} parameters, the first of shape {unfrozen[0]}, were '
            'frozen when the optimizer was built and are trained now. AGVM would not '
            'scale their learning rate: let them require gradients before the Runner '
            'builds the optimizer, or unfreeze them in a second run with load_from'
        )


def check_one_hook(hook: str, count: int) -> None:
    """Check that a run has one hook of a kind.

    Args:
        hook: Name of the hook.
        count: Number of such hooks.

    Raises:
        ValueError: If there are several.
    """
    if count > 1:
        raise ValueError(
            f'there are {count} hooks {hook}, and each would measure; keep one, in '
            f"default_hooks=dict(agvm=dict(type='{hook}', ...)) or in custom_hooks"
        )


def check_clip_window(window: object, clips: bool) -> None:
    """Check the window of updates in which gradients are clipped.

    Args:
        window: Value from the config: None or (first, last).
        clips: Whether ``clip_grad`` is set.

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


def check_update_params(loop: str, optim_wrapper: OptimWrapper) -> None:
    """Check that a large-batch loop can close the updates of an optimizer wrapper.

    Args:
        loop: Name of the loop.
        optim_wrapper: The optimizer wrapper of the run.

    Raises:
        TypeError: If its ``update_params`` is not MMEngine's.
    """
    kind = type(optim_wrapper)
    if kind.update_params is not OptimWrapper.update_params:
        raise TypeError(
            f'{loop} calls backward and step of the optimizer wrapper itself, but '
            f'{kind.__name__} overrides update_params; use a loop of MMEngine with '
            'optim_wrapper.accumulative_counts'
        )


# Model and ranks


def check_model(model: nn.Module, accumulation: int) -> None:
    """Check that AGVM can see the gradients of a model.

    Args:
        model: As the runner trains it.
        accumulation: Micro-batches of one update on each rank.

    Raises:
        TypeError: If it is wrapped in anything but DistributedDataParallel, or not
            wrapped on several ranks.
        ValueError: If DDP has static_graph and gradients are accumulated.
    """
    if any(is_sharded(module) for module in model.modules()):
        raise TypeError(
            'AGVM does not support FSDP: no rank holds the whole gradient of a '
            'module. Use MMDistributedDataParallel'
        )
    # MMSeparateDistributedDataParallel is a subclass of DDP, but wraps several.
    separate = isinstance(model, MMSeparateDistributedDataParallel)
    if isinstance(model, DistributedDataParallel) and not separate:
        if model.static_graph and accumulation > 1:
            raise ValueError(
                f'static_graph=True with {accumulation} accumulated micro-batches '
                'fails inside DDP; remove static_graph from model_wrapper_cfg'
            )
    elif is_model_wrapper(model) or isinstance(model, nn.DataParallel):
        raise TypeError(
            f'AGVM does not support models wrapped in {type(model).__name__}; use '
            'MMDistributedDataParallel'
        )
    elif get_world_size() > 1:
        raise TypeError(
            f'{get_world_size()} ranks, but the model is not wrapped in '
            'DistributedDataParallel: each rank would train its own model. Set '
            "launcher='pytorch' (or slurm, mpi)"
        )


def is_sharded(module: nn.Module) -> bool:
    """Return whether FSDP (either version) holds the parameters of a module."""
    if not dist.is_available():
        return False
    from torch.distributed import fsdp

    # fully_shard and its FSDPModule became public in torch 2.6.
    kinds = (fsdp.FullyShardedDataParallel, getattr(fsdp, 'FSDPModule', ()))
    return isinstance(module, kinds)


def check_replicas(ranks: int, accumulation: int, comm_hook: str | None) -> None:
    """Check that a run has several gradients to compare.

    Args:
        ranks: Ranks of DDP; 1 without DDP.
        accumulation: Micro-batches of one update on each rank.
        comm_hook: Compression of the reduction over the ranks, if there is one.

    Raises:
        ValueError: If there is nothing to compare, or nothing to compress.
    """
    if ranks > 1:
        return
    if comm_hook is not None:
        raise ValueError(
            f"comm_hook='{comm_hook}' compresses the reduction over several ranks; "
            'this run has one'
        )
    if accumulation < 2:
        raise ValueError(
            'AGVM compares the gradients of several ranks, or of several '
            'micro-batches of an accumulated update; this run has one rank and '
            'accumulative_counts=1. Start more ranks (tools/dist_train.sh CONFIG 2), '
            'set optim_wrapper.accumulative_counts to 2 or more, or use '
            'train_cfg=dict(type="LargeBatchTrainLoop", total_batch_size=...)'
        )


def check_compression(
    comm_hook: str,
    dtypes: Mapping[str, torch.dtype],
    group: dist.ProcessGroup,
    device: torch.device,
) -> None:
    """Check that the backend reduces compressed gradients, by reducing a number.

    All ranks have to call this. Without it the first update would fail.

    Args:
        comm_hook: Name of the compression.
        dtypes: What gradients are compressed to, by name of the compression.
        group: Process group of the ranks.
        device: Device of the gradients.

    Raises:
        ValueError: If the backend cannot add numbers of this type.
    """
    dtype = dtypes[comm_hook]
    try:
        dist.all_reduce(torch.zeros(1, dtype=dtype, device=device), group=group)
    except RuntimeError as error:
        others = [name for name in dtypes if name != comm_hook]
        raise ValueError(
            f"comm_hook='{comm_hook}': the backend {dist.get_backend(group)} of torch "
            f'{torch.__version__} does not reduce {dtype} ({error}); try '
            f'{" or ".join(others)}, or remove it'
        ) from error


def check_ranks_agree(fingerprint: Mapping[str, object]) -> None:
    """Check that all ranks have the same settings.

    Args:
        fingerprint: Settings of this rank by name.

    Raises:
        ValueError: If a rank has another value than rank 0.
    """
    everyone = all_gather_object(dict(fingerprint))
    for rank, other in enumerate(everyone):
        for name, value in everyone[0].items():
            if other[name] != value:
                raise ValueError(
                    f'the ranks disagree on {name}: rank 0 has {value}, rank {rank} '
                    f'has {other[name]}; start all of them from the same config and '
                    'checkpoint'
                )


# Batch


def check_index_batches(dataloader: DataLoader) -> None:
    """Check that a dataloader draws index batches, from which updates are planned.

    Args:
        dataloader: Dataloader of the training.

    Raises:
        TypeError: If it has no batch sampler.
    """
    if dataloader.batch_sampler is None:
        raise TypeError(
            'a large-batch loop plans updates on the batch sampler of '
            f'train_dataloader, and that of {type(dataloader.dataset).__name__} has '
            'none; use a map-style dataset with a batch_size'
        )


def check_images_per_rank(size: object, batch_sampler: object) -> None:
    """Check that a dataloader has one batch size.

    Args:
        size: Images of one micro-batch.
        batch_sampler: Batch sampler of the dataloader.

    Raises:
        ValueError: If it has none, or several.
    """
    if not isinstance(size, int):
        found = 'no batch_size' if size is None else f'several batch sizes, {size}'
        raise ValueError(
            f'train_dataloader with {type(batch_sampler).__name__} has {found}; the '
            'images of an update can be counted only if all micro-batches have the '
            'same batch_size'
        )


def check_total_fits(total: int, dataloader: DataLoader, ranks: int) -> None:
    """Check that there are enough images for one full update.

    Args:
        total: Images of one update over all ranks.
        dataloader: Dataloader of the training.
        ranks: Number of ranks.

    Raises:
        ValueError: If an epoch has fewer images than an update.
    """
    batch_sampler = dataloader.batch_sampler
    sampler = getattr(batch_sampler, 'sampler', dataloader.sampler)
    images = len(sampler) * ranks
    if images < total:
        raise ValueError(
            f'total_batch_size={total}, but an epoch has only {images} images; lower '
            'total_batch_size'
        )


def check_loop_ends(loop: str, other: str, endless: bool, sampler: object) -> None:
    """Check that a loop that counts epochs has a sampler that ends.

    Args:
        loop: Name of the loop.
        other: Name of the loop that counts iterations.
        endless: Whether the sampler never ends.
        sampler: Sampler of the dataloader.

    Raises:
        ValueError: If it never ends.
    """
    if endless:
        raise ValueError(
            f'{loop} counts epochs, but {type(sampler).__name__} never ends one; use '
            f"train_cfg=dict(type='{other}', max_iters=..., total_batch_size=...)"
        )


def check_total_batch_size(total: int, ranks: int, images_per_rank: int) -> None:
    """Check that a total batch is made of whole micro-batches on every rank.

    Args:
        total: Images of one update over all ranks.
        ranks: Number of ranks.
        images_per_rank: Images of one micro-batch on one rank.

    Raises:
        TypeError: If the total is not an integer.
        ValueError: If it is not a positive multiple of ranks x images per rank.
    """
    check_number('total_batch_size', total, low=1, integer=True)
    unit = ranks * images_per_rank
    count, rest = divmod(total, unit)
    if rest:
        nearest = [n * unit for n in (count, count + 1) if n]
        raise ValueError(
            f'total_batch_size={total} is not a multiple of {ranks} rank(s) x '
            f'{images_per_rank} images per rank = {unit}; the nearest multiples are '
            f'{" and ".join(map(str, nearest))}. Or change train_dataloader.batch_size'
        )


def check_accumulation(loop: str, total_batch_size: int, counts: int) -> None:
    """Check that the optimizer wrapper leaves accumulation to a large-batch loop.

    Args:
        loop: Name of the loop.
        total_batch_size: Images of an update.
        counts: ``accumulative_counts`` of the optimizer wrapper.

    Raises:
        ValueError: If it accumulates.
    """
    if counts != 1:
        raise ValueError(
            f'{loop} accumulates up to total_batch_size={total_batch_size} by itself; '
            f'remove optim_wrapper.accumulative_counts={counts}'
        )


def check_auto_scaling(settings: Mapping | None, total_batch_size: int) -> None:
    """Check that MMEngine does not scale the learning rate to another batch.

    Args:
        settings: ``auto_scale_lr`` of the config.
        total_batch_size: Images of an update.

    Raises:
        ValueError: If it does.
    """
    if settings and settings.get('enable'):
        raise ValueError(
            'auto_scale_lr.enable scales the learning rate to ranks x images per rank '
            f'and does not know total_batch_size={total_batch_size}: set it to False '
            "and use --auto-scale-lr of agvm_mm's tools/train.py, or set the learning "
            'rate for that batch'
        )


# Checkpoints


def check_parts(path: str, missing: Sequence[str], advice: str, allowed: bool) -> None:
    """Check that a checkpoint has all that a run continues from, or log what it lacks.

    Args:
        path: The checkpoint to resume.
        missing: What it lacks.
        advice: Which other checkpoint to resume.
        allowed: Whether to continue without the state of optimizer and schedules.

    Raises:
        ValueError: If something is missing and that is not allowed, or the rest is not
            enough to resume.
    """
    if not missing:
        return
    problem = f'the checkpoint to resume, {path}, lacks {", ".join(missing)}'
    if not all(part.startswith(('optimizer', 'param_schedulers')) for part in missing):
        raise ValueError(
            f'{problem}: it has weights to start from with load_from (resume=False), '
            f'not the state of a training; {advice}'
        )
    if not allowed:
        raise ValueError(
            f'{problem}, which would start over; {advice}. Set '
            'optim_wrapper.allow_resume_mismatch=True to resume it anyway, or start '
            'from its weights with load_from'
        )
    print_log(
        f'{problem}; resuming it without', logger='current', level=logging.WARNING
    )


def check_replay(schedulers: Sequence[object]) -> None:
    """Check that schedules can be continued without their state.

    Args:
        schedulers: Parameter schedulers of the run.

    Raises:
        ValueError: If one of them follows a metric.
    """
    for scheduler in schedulers:
        if getattr(scheduler, 'need_val_args', False):
            raise ValueError(
                f'{type(scheduler).__name__} follows the metrics of the run so far, '
                'so its schedule cannot be resumed without the state of the optimizer; '
                'start from the weights with load_from'
            )


def check_can_write(out_dir: str) -> None:
    """Check that checkpoints can be written to a folder.

    Args:
        out_dir: From the config.

    Raises:
        ValueError: If MMEngine can only read there.
    """
    if out_dir.startswith(('http://', 'https://')):
        raise ValueError(
            f'out_dir={out_dir!r}: nothing can be written there; use a local folder '
            'or a storage such as s3://'
        )
