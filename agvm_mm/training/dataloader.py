"""Dataloader that is iterated by optimizer updates."""

import math
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from functools import cache, partial
from itertools import islice

from torch.utils.data import DataLoader, Sampler

from agvm_mm.engine import is_endless
from agvm_mm.training.batch import (
    BatchSize,
    check_index_batches,
    check_total_fits,
    divide_total,
)
from agvm_mm.training.update import RandomStream, derive_seed


class UpdateWindow:
    """Micro-batches of one optimizer update on this rank, loaded one by one.

    Args:
        batches: Yields micro-batches.
        sizes: Images of each micro-batch of this update.
    """

    def __init__(self, batches: Iterator, sizes: list[int]) -> None:
        self._batches = batches
        self._taken = 0
        self.sizes = tuple(sizes)

    @property
    def images(self) -> int:
        """Images of this update on this rank."""
        return sum(self.sizes)

    @property
    def weights(self) -> list[Fraction]:
        """Share of each micro-batch in the images of this update."""
        return [Fraction(size, self.images) for size in self.sizes]

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator:
        while self._taken < len(self.sizes):
            self._taken += 1
            yield next(self._batches)

    def skip(self) -> None:
        """Load and drop the micro-batches that were not taken."""
        for _ in self:
            pass


class PlannedPass:
    """One pass through a batch sampler that is drawn update by update.

    A DataLoader iterates it. It may draw ahead, as workers prefetch.

    Args:
        batch_sampler: Yields the indices of one micro-batch at a time.
        micro_batches: Micro-batches of a full update.
        stream: Random numbers of this pass; samplers may use the global generators.
    """

    def __init__(
        self, batch_sampler: Sampler, micro_batches: int, stream: RandomStream
    ) -> None:
        self._micro_batches = micro_batches
        self._stream = stream
        self._indices: deque[list] = deque()
        self._sizes: deque[list[int]] = deque()
        with stream:
            self._iterator = iter(batch_sampler)

    def __iter__(self) -> Iterator[list]:
        return self

    def __next__(self) -> list:
        if not self._indices:
            self._draw()
        if not self._indices:
            raise StopIteration
        return self._indices.popleft()

    def next_sizes(self) -> list[int] | None:
        """Return the images of each micro-batch of the next update; None at the end."""
        if not self._sizes:
            self._draw()
        return self._sizes.popleft() if self._sizes else None

    def _draw(self) -> None:
        with self._stream:
            batches = list(islice(self._iterator, self._micro_batches))
        if batches:
            self._indices.extend(batches)
            self._sizes.append([len(batch) for batch in batches])


class UpdatePlan:
    """Index sampler of a DataLoader: each iteration starts a :class:`PlannedPass`.

    Attributes:
        current: The pass that was started last.
        next_pass: Number of the pass to start next; it seeds samplers that use the
            global random generators. A loop that counts epochs sets it.
    """

    def __init__(self, batch_sampler: Sampler, micro_batches: int, seed: int) -> None:
        self.batch_sampler = batch_sampler
        self.micro_batches = micro_batches
        self.seed = seed
        self.next_pass = 0
        self.current: PlannedPass | None = None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> PlannedPass:
        stream = RandomStream(self.seed, self.next_pass, 0)
        self.next_pass += 1
        self.current = PlannedPass(self.batch_sampler, self.micro_batches, stream)
        return self.current


class UpdateDataLoader(DataLoader):
    """DataLoader whose items are the windows of optimizer updates.

    Its length counts updates, so schedules, logs and checkpoints do as well. Built by
    :func:`load_by_updates` from the DataLoader of a run, which stays the same object:
    all that a hook sets on it reaches the workers.

    Attributes:
        batch: The batch size and how it is divided.
        plan: Yields the index batches.
    """

    batch: BatchSize
    plan: UpdatePlan

    @property
    def batch_size(self) -> int:
        """Images of one update on this rank, which one iteration of the loop takes."""
        return self.batch.images_per_rank * self.batch.micro_batches

    @property
    def _index_sampler(self) -> UpdatePlan:
        return self.plan

    def __len__(self) -> int:
        if is_endless(self.batch_sampler):
            return math.ceil(len(self.dataset) / self.batch.total)
        return math.ceil(len(self.batch_sampler) / self.batch.micro_batches)

    def __iter__(self) -> Iterator[UpdateWindow]:
        self._seed_workers(self.plan.next_pass)
        # Workers get their base seed here.
        with RandomStream(self.plan.seed, self.plan.next_pass, 1):
            batches = super().__iter__()
        current = self.plan.current
        while (sizes := current.next_sizes()) is not None:
            window = UpdateWindow(batches, sizes)
            yield window
            window.skip()

    def _seed_workers(self, number: int) -> None:
        """Seed the workers of a pass by its number.

        MMEngine gives new workers the same seed in every epoch, which repeats the
        random augmentations.
        """
        init = self.worker_init_fn
        if isinstance(init, partial) and 'seed' in init.keywords:
            # Below 2^31: MMEngine adds the worker's number, and NumPy takes 32 bits.
            seed = derive_seed(self.plan.seed, number, 2) // 2
            self.worker_init_fn = partial(init, seed=seed)


@cache
def _update_class(kind: type[DataLoader]) -> type[UpdateDataLoader]:
    if kind is DataLoader:
        return UpdateDataLoader
    return type(f'Update{kind.__name__}', (UpdateDataLoader, kind), {})


def load_by_updates(
    dataloader: DataLoader, total_batch_size: int, seed: int
) -> UpdateDataLoader:
    """Make a DataLoader yield one optimizer update at a time.

    Args:
        dataloader: Yields the micro-batches of this rank. Changed in place.
        total_batch_size: Images of one update over all ranks.
        seed: Seed of samplers that use the global random generators.

    Raises:
        TypeError: If it has no batch sampler.
        ValueError: If the total is not a multiple of ranks x images per rank, or there
            are not so many images.
    """
    check_index_batches(dataloader)
    batch = divide_total(total_batch_size, dataloader)
    if not is_endless(dataloader.batch_sampler):
        check_total_fits(total_batch_size, dataloader, batch.ranks)
    dataloader.batch = batch
    dataloader.plan = UpdatePlan(dataloader.batch_sampler, batch.micro_batches, seed)
    # Not a wrapper: hooks of the toolboxes set private attributes of the DataLoader.
    dataloader.__class__ = _update_class(type(dataloader))
    return dataloader


def set_seed(
    dataloader: UpdateDataLoader, seed: int, saved: list[int] | None = None
) -> list[int]:
    """Give samplers the seed of a resumed run.

    The dataset stays as it is. Samplers with a seed of their own, from the config or
    drawn because each rank has its own, get that of the checkpoint or keep theirs.

    Args:
        dataloader: Its iteration has not started yet.
        seed: Seed of the run.
        saved: Seeds of the samplers in the checkpoint. Defaults to None.

    Returns:
        Seeds of the samplers, to save in checkpoints.
    """
    before, dataloader.plan.seed = dataloader.plan.seed, seed
    batch_sampler = dataloader.batch_sampler
    owners = [
        owner
        for owner in (batch_sampler, getattr(batch_sampler, 'sampler', None))
        if hasattr(owner, 'seed')
    ]
    seeds = [seed if owner.seed == before else owner.seed for owner in owners]
    if saved is not None and len(saved) == len(seeds):
        seeds = saved
    for owner, own in zip(owners, seeds, strict=True):
        owner.seed = own
    return seeds
