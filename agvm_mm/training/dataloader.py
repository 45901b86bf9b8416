"""Dataloader that is iterated by optimizer updates."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from inspect import Parameter, signature
from itertools import accumulate, chain, islice, tee
from threading import get_ident
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.logging import MessageHub, print_log
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from agvm_mm.engine import is_endless, rewind
from agvm_mm.training.batch import BatchSize, divide_total
from agvm_mm.training.update import SEEDS, RandomStream, derive_seed, seed_cpu

REPLACED = {'batch_size', 'shuffle', 'sampler', 'batch_sampler', 'drop_last'}
"""Arguments of a DataLoader that its batch sampler stands for."""
PLACE = 'agvm_place'
"""Key of what checkpoints have: a pass, its updates and images so far, the total."""
VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


class UpdateWindow(MutableMapping):
    """Images of one optimizer update on this rank, loaded one micro-batch at a time.

    Hooks get it as ``data_batch`` and use it like a batch of MMEngine: each entry holds
    the images of all micro-batches, which are loaded when a hook asks for the first
    one. What a hook changes before the update is what the model gets.

    Args:
        batches: Yields micro-batches.
        sizes: Images of each micro-batch of this update.
    """

    def __init__(self, batches: Iterator, sizes: list[int]) -> None:
        self._batches = batches
        self._loaded: list = []
        self._joined: dict | list | None = None
        self.sizes = tuple(sizes)

    @property
    def images(self) -> int:
        """Images of this update on this rank."""
        return sum(self.sizes)

    def micro_batches(self) -> Iterator:
        """Yield the micro-batches."""
        if self._joined is not None:
            yield from split_batch(self._joined, self._loaded)
        else:
            yield from self.rest()

    def rest(self) -> Iterator:
        """Load and yield the micro-batches that were not taken.

        Raises:
            RuntimeError: If the dataloader yields fewer.
        """
        while len(self._loaded) < len(self.sizes):
            try:
                self._loaded.append(next(self._batches))
            except StopIteration:
                raise RuntimeError(
                    f'train_dataloader ended {len(self.sizes) - len(self._loaded)} '
                    'micro-batches before the end of an update: __iter__ of its class '
                    'has to yield a batch for each of its batch sampler'
                ) from None
            yield self._loaded[-1]

    def _all(self) -> dict | list:
        if self._joined is None:
            list(self.rest())
            self._joined = join_batches(self._loaded)
        return self._joined

    def __reduce__(self) -> tuple:
        # A copy is a plain batch: the iterator cannot be copied.
        return type(self._all()), (self._all(),)

    def __getitem__(self, key: Any) -> Any:
        return self._all()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._all()[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._all()[key]

    def __iter__(self) -> Iterator:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def join_batches(batches: Sequence) -> dict | list:
    """Return one batch with the images of several.

    Each is a mapping or sequence of lists or tensors with an entry for each image, as
    the functions that collate them make it.

    Raises:
        ValueError: If an entry is of another type, or only some batches have it.
    """
    joined = _join(list(map(by_name, batches)), 'data_batch')
    return joined if isinstance(batches[0], Mapping) else list(joined.values())


def by_name(batch: Mapping | Sequence) -> Mapping:
    """Return the entries of a batch by their names or numbers."""
    return batch if isinstance(batch, Mapping) else dict(enumerate(batch))


def _join(values: Sequence, name: str) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        if any(value.keys() != first.keys() for value in values):
            raise ValueError(
                f'a hook reads {name}, whose micro-batches have different entries; '
                'change collate_fn'
            )
        return {
            key: _join([value[key] for value in values], f'{name}.{key}')
            for key in first
        }
    if isinstance(first, Tensor) and first.dim():
        return torch.cat(list(values))
    if not isinstance(first, list | tuple):
        raise ValueError(
            f'a hook reads data_batch, but {name} ({type(first).__name__}) is no list '
            'or tensor with an entry for each image; change collate_fn'
        )
    joined = chain.from_iterable(values)
    return tuple(joined) if isinstance(first, tuple) else list(joined)


def split_batch(joined: dict | list, batches: Sequence) -> list:
    """Return the images of :func:`join_batches` in batches of the same sizes.

    Raises:
        ValueError: If there are other entries or another number of images.
    """
    parts = _split(by_name(joined), list(map(by_name, batches)), 'data_batch')
    if isinstance(batches[0], Mapping):
        return parts
    return [list(part.values()) for part in parts]


def _split(joined: Any, values: Sequence, name: str) -> list:
    first = values[0]
    if isinstance(first, Mapping):
        if joined.keys() != first.keys():
            before, after = (', '.join(map(str, each)) for each in (first, joined))
            raise ValueError(
                f'a hook changed the entries of {name} from {before} to {after}, which '
                'cannot be divided into micro-batches'
            )
        columns = {
            key: _split(joined[key], [value[key] for value in values], f'{name}.{key}')
            for key in first
        }
        return [
            {key: column[index] for key, column in columns.items()}
            for index in range(len(values))
        ]
    ends = list(accumulate(map(len, values)))
    if len(joined) != ends[-1]:
        raise ValueError(
            f'a hook changed the number of images in {name} from {ends[-1]} to '
            f'{len(joined)}, which cannot be divided into micro-batches'
        )
    return [joined[end - len(own) : end] for end, own in zip(ends, values, strict=True)]


class SeededBatch(list):
    """Indices of a micro-batch, each with random numbers of its own.

    Before the process loads the sample of an index, its global generators are seeded by
    the seed of the run, the pass over the data and the position of the sample in it. So
    augmentations depend neither on the workers nor on what was loaded before. A
    ``collate_fn`` that draws goes on from the last sample.
    """

    def __init__(self, indices: Iterable, seeds: range) -> None:
        super().__init__(indices)
        self.seeds = seeds

    def __iter__(self) -> Iterator:
        for index, seed in zip(super().__iter__(), self.seeds, strict=True):
            seed_cpu(seed % SEEDS)
            yield index

    def __reduce__(self) -> tuple:
        # A thread writes batches to the workers: it must not touch the generators.
        return type(self), (list(super().__iter__()), self.seeds)


def loaded_apart(batches: Iterator) -> Iterator:
    """Yield batches whose samples leave the generators of this process as they were."""
    stream = RandomStream(0)
    while True:
        with stream:
            batch = next(batches, batches)
        if batch is batches:
            return
        yield batch


class UpdatePlan(Sampler):
    """Batch sampler that draws micro-batches from another one update by update.

    Attributes:
        number: Number of the pass over the data that is started next; the one after
            the last by default.
        done: Updates of that pass that are drawn and left out, as a resumed run has
            done them.
    """

    def __init__(self, batch_sampler: Sampler, batch: BatchSize, seed: int) -> None:
        self.batch_sampler = batch_sampler
        self.batch_size = batch.images_per_rank
        self.micro_batches = batch.micro_batches
        self.seed = seed
        self.total = batch.total
        self.number = self.done = 0
        samplers = batch_sampler, self.sampler
        generators = [getattr(each, 'generator', None) for each in samplers]
        self._generators = {
            each: each.initial_seed()
            for each in generators
            if isinstance(each, torch.Generator)
        }
        self._drawn: Iterator[list[list]] | None = None
        self._thread: int | None = None

    @property
    def sampler(self) -> Sampler:
        """What the micro-batches are made of; a batch sampler may draw by itself."""
        return getattr(self.batch_sampler, 'sampler', self.batch_sampler)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def start_at(self, hub: MessageHub, number: int, done: int = 0) -> None:
        """Let the next pass begin where the message hub says, else after an update."""
        default = number, done, done * self.total, self.total
        number, done, images, total = hub.runtime_info.get(PLACE, default)
        if total != self.total:  # A run of another batch had other updates.
            done = math.ceil(images / self.total)
        hub.update_info(PLACE, (number, done, images, self.total))
        self.number, self.done = number, done

    def count_update(self, hub: MessageHub, images: int) -> None:
        """Note an update of so many images over all ranks."""
        if PLACE in hub.runtime_info:  # A loop with its own `run` has no place.
            number, done, before, total = hub.runtime_info[PLACE]
            hub.update_info(PLACE, (number, done + 1, before + images, total))

    def end_pass(self, hub: MessageHub) -> None:
        """Note that the pass that was started last is over."""
        hub.update_info(PLACE, (self.number, 0, 0, self.total))

    def start_pass(self) -> Iterator[list[list]]:
        """Start the next pass.

        Returns:
            Iterator over the index batches of each update. The DataLoader may draw
            ahead of it, as workers prefetch.
        """
        updates, self._drawn = tee(self._draw(self.number, self.done))
        self.number, self.done = self.number + 1, 0
        self._thread = get_ident()
        return updates

    def __iter__(self) -> Iterator[list]:
        if self._drawn is None:
            raise RuntimeError(
                'train_dataloader draws batches before an epoch begins, in an order '
                "that is not that epoch's; use torch's DataLoader, with "
                'persistent_workers=True to keep its workers'
            )
        # With workers a DataLoader asks for two iterators and uses the second.
        return self._take(self._drawn)

    def _take(self, drawn: Iterator[list[list]]) -> Iterator[list]:
        for batch in chain.from_iterable(drawn):
            if get_ident() != self._thread:
                raise RuntimeError(
                    'train_dataloader draws batches in a thread of its own, which '
                    'would mix their random numbers with those of the model; use '
                    'num_workers'
                )
            yield batch

    def _draw(self, number: int, done: int) -> Iterator[list[list]]:
        # Samplers may use the global generators.
        stream, ranks = RandomStream(self.seed, number), get_world_size()
        for generator, own_seed in self._generators.items():
            # A resumed run has not drawn the passes before from it.
            generator.manual_seed(derive_seed(own_seed, number))
        # The samples of the ranks take turns in the pass.
        seed = derive_seed(self.seed, number) + get_rank()
        with stream:
            rewind(self.batch_sampler)
            iterator = iter(self.batch_sampler)
            for batch in islice(iterator, done * self.micro_batches):
                seed += len(batch) * ranks
        while True:
            with stream:
                batches = list(islice(iterator, self.micro_batches))
            if not batches:
                return
            update = []
            for batch in batches:
                end = seed + len(batch) * ranks
                update.append(SeededBatch(batch, range(seed, end, ranks)))
                seed = end
            yield update


class UpdateDataLoader(DataLoader):
    """DataLoader whose items are the windows of optimizer updates.

    Its length counts updates, so schedules, logs and checkpoints do as well.

    Args:
        dataloader: Yields the micro-batches of this rank. Its dataset, batch sampler
            and settings are used.
        total_batch_size: Images of one update over all ranks.
        seed: Seed of the run.

    Attributes:
        batch: The batch size and how it is divided.
        plan: Yields the index batches.
        endless: Whether the sampler never ends.

    Raises:
        TypeError: If it has no batch sampler, or its class cannot be built from its
            settings.
        ValueError: If the total is not a multiple of ranks x images per rank, there
            are not so many images, or batches come in any order.
    """

    def __init__(
        self, dataloader: DataLoader, total_batch_size: int, seed: int
    ) -> None:
        settings = settings_of(dataloader)
        self.batch = divide_total(total_batch_size, dataloader)
        self.endless = is_endless(dataloader.batch_sampler)
        self.plan = UpdatePlan(dataloader.batch_sampler, self.batch, seed)
        super().__init__(batch_sampler=self.plan, **settings)
        names = ', '.join(own_generators(self.dataset)) if self.num_workers else ''
        if names:
            print_log(
                f'{names}: the transforms of Albumentations draw from a generator of '
                'their own, of which each worker has the same copy in every epoch: use '
                f'train_dataloader.num_workers=0 (found {self.num_workers}), or '
                'transforms of the toolbox',
                logger='current',
                level=logging.WARNING,
            )

    def __len__(self) -> int:
        if self.endless:
            return math.ceil(len(self.dataset) / self.batch.total)
        return math.ceil(len(self.plan) / self.batch.micro_batches)

    def __iter__(self) -> Iterator[UpdateWindow]:
        updates = self.plan.start_pass()
        batches = iter(super().__iter__())
        if not self.num_workers:
            batches = loaded_apart(batches)
        for update in updates:
            window = UpdateWindow(batches, [len(batch) for batch in update])
            yield window
            list(window.rest())
        if next(batches, batches) is not batches:
            raise RuntimeError(
                'train_dataloader goes on after its batch sampler has ended: __iter__ '
                'of its class has to yield a batch for each of its batch sampler'
            )


def own_generators(dataset: Dataset) -> dict[str, None]:
    """Return names of transforms that draw from a generator of their own, as keys."""
    names, parts, seen = {}, [dataset], {}
    while parts:
        part = parts.pop()
        if id(part) in seen:  # A transform may have its data set.
            continue
        seen[id(part)] = part
        # Albumentations from 1.4.21 on, in Albu of the toolboxes.
        if hasattr(getattr(part, 'aug', None), 'random_generator'):
            names[type(part).__name__] = None
        parts.append(getattr(part, 'dataset', None))
        for name in ('datasets', 'pipeline', 'transforms'):
            inner = getattr(part, name, None)
            parts += inner if isinstance(inner, list | tuple) else [inner]
    return names


class EndlessUpdates:
    """Iterator over the updates of pass after pass, for loops that count iterations.

    A run that resumes does not load the updates that are done: MMEngine's loop asks for
    as many items first, and each is None.
    """

    def __init__(
        self, dataloader: UpdateDataLoader, done: int, hub: MessageHub
    ) -> None:
        self._left_out = done
        self._windows = passes(dataloader, done, hub)

    def skip_iter(self, updates: int) -> None:
        """Do nothing: onedl-mmengine calls it in place of asking for items."""
        self._left_out = 0

    def __iter__(self) -> 'EndlessUpdates':
        return self

    def __next__(self) -> UpdateWindow | None:
        if self._left_out:
            self._left_out -= 1
            return None
        return next(self._windows)


def passes(
    dataloader: UpdateDataLoader, done: int, hub: MessageHub
) -> Iterator[UpdateWindow]:
    """Yield the updates of :class:`EndlessUpdates` after those that are done."""
    number = 0 if dataloader.endless else done // len(dataloader)
    plan, done = dataloader.plan, done - number * len(dataloader)
    while True:
        plan.start_at(hub, number, done)
        if hasattr(plan.sampler, 'set_epoch'):
            plan.sampler.set_epoch(plan.number)
        is_empty = not plan.done
        for window in dataloader:
            is_empty = False
            yield window
        if is_empty:
            return
        plan.end_pass(hub)


def build_update_dataloader(
    dataloader: DataLoader, total_batch_size: int, seed: int
) -> UpdateDataLoader:
    """Build the :class:`UpdateDataLoader` of a dataloader.

    One of a class of its own keeps its methods, as what it does to a batch.
    """
    kind, cls = UpdateDataLoader, type(dataloader)
    if cls is not DataLoader:
        kind = type(f'Update{cls.__name__}', (UpdateDataLoader, cls), {})
    return kind(dataloader, total_batch_size, seed)


def settings_of(dataloader: DataLoader) -> dict[str, Any]:
    """Return the arguments to build a dataloader with another batch sampler.

    Raises:
        TypeError: If it has no batch sampler, or not all arguments as attributes.
        ValueError: If its batches come in any order.
    """
    kind = type(dataloader).__name__
    if dataloader.batch_sampler is None:
        raise TypeError(
            'a large-batch loop plans updates on the batch sampler of '
            f'train_dataloader, and that of {type(dataloader.dataset).__name__} has '
            'none; use a map-style dataset with a batch_size'
        )
    if not getattr(dataloader, 'in_order', True):
        raise ValueError(
            'train_dataloader.in_order=False takes batches as workers finish them, so '
            'those of an update depend on time; remove it'
        )
    # Whatever this version of torch knows.
    names = set(signature(DataLoader).parameters)
    own = signature(type(dataloader)).parameters.values()
    names.update(each.name for each in own if each.kind not in VARIADIC)
    names -= REPLACED
    missing = sorted(name for name in names if not hasattr(dataloader, name))
    if missing:
        raise TypeError(
            f'a large-batch loop builds a {kind} with another batch sampler, but does '
            f'not find its argument {missing[0]}; keep it as an attribute'
        )
    return {name: getattr(dataloader, name) for name in names}


def has_uneven_ranks(dataloader: UpdateDataLoader) -> bool:
    """Return whether some ranks have more images in an epoch than others.

    Raises:
        ValueError: If they also have more micro-batches, or may have.
    """
    if dataloader.endless:
        return False
    batch_sampler = dataloader.plan.batch_sampler
    drops = getattr(batch_sampler, 'drop_last', False)
    if drops and get_world_size() > 1 and type(batch_sampler) is not BatchSampler:
        kind = type(batch_sampler).__name__
        raise ValueError(
            f'train_dataloader.batch_sampler: {kind} with drop_last=True may drop more '
            'batches on one rank than on another, which would wait for it; use '
            'drop_last=False'
        )
    plan = dataloader.plan
    found = all_gather_object((len(plan.sampler), len(plan)))
    images, parts = zip(*found, strict=True)
    if len(set(parts)) > 1:  # SyncBN and many losses exchange numbers in each.
        raise ValueError(
            f'the ranks have {min(parts)} to {max(parts)} micro-batches in an epoch, '
            f'of {min(images)} to {max(images)} images, and some would wait for '
            'others; give them the same number by '
            'train_dataloader.sampler.round_up=True'
        )
    return len(set(images)) > 1


def set_seed(
    dataloader: UpdateDataLoader, seed: int, saved: list[int] | None = None
) -> list[int]:
    """Give samplers the seed of a resumed run.

    The dataset stays as it is. Samplers with a seed of their own, from the config or
    drawn because each rank has its own, get that ``saved`` in the checkpoint or keep
    theirs. Return the seeds of all samplers, to save in checkpoints.
    """
    plan = dataloader.plan
    before, plan.seed = plan.seed, seed
    samplers = dict.fromkeys((plan.batch_sampler, plan.sampler))
    owners = [sampler for sampler in samplers if hasattr(sampler, 'seed')]
    seeds = [seed if owner.seed == before else owner.seed for owner in owners]
    if saved is not None and len(saved) == len(seeds):
        seeds = saved
    for owner, own in zip(owners, seeds, strict=True):
        owner.seed = own
    return seeds
