"""Dataloader that is iterated by optimizer updates."""

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

from mmengine.dataset import InfiniteSampler
from torch.utils.data import DataLoader, Sampler

from agvm_mm.loops.batch_size import divide_total


class UpdateWindow:
    """Micro-batches of one optimizer update on this rank, loaded one by one.

    Args:
        batches: Yields micro-batches.
        sizes: Images of each micro-batch of this update.
    """

    def __init__(self, batches: Iterator, sizes: Sequence[int]) -> None:
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


class UpdateDataLoader:
    """Dataloader that yields the window of one optimizer update at a time.

    Its length counts updates, so schedules, logs and checkpoints do as well. All other
    attributes are those of the wrapped dataloader.

    Args:
        dataloader: Yields the micro-batches of this rank.
        total_batch_size: Images of one update over all ranks.

    Attributes:
        batch: The batch size and how it is divided.

    Raises:
        ValueError: If the total is not a multiple of ranks x images per rank.
    """

    def __init__(self, dataloader: DataLoader, total_batch_size: int) -> None:
        self.dataloader = dataloader
        self.batch = divide_total(total_batch_size, dataloader)

    def __getattr__(self, name: str) -> object:
        if name == 'dataloader':  # Not set yet while being unpickled.
            raise AttributeError(name)
        return getattr(self.dataloader, name)

    def __len__(self) -> int:
        if self._is_infinite:
            return math.ceil(len(self.dataloader.dataset) / self.batch.total)
        return math.ceil(len(self.dataloader) / self.batch.micro_batches)

    def __iter__(self) -> Iterator[UpdateWindow]:
        batches = iter(self.dataloader)
        for sizes in self._window_sizes():
            window = UpdateWindow(batches, sizes)
            yield window
            window.skip()

    @property
    def _is_infinite(self) -> bool:
        return isinstance(self._sampler, InfiniteSampler)

    @property
    def _sampler(self) -> Sampler:
        # A custom batch sampler wraps the sampler that knows the length.
        return getattr(
            self.dataloader.batch_sampler, 'sampler', self.dataloader.sampler
        )

    def _window_sizes(self) -> Iterator[list[int]]:
        images, count = self.batch.images_per_rank, self.batch.micro_batches
        if self._is_infinite:
            yield from itertools.repeat([images] * count)
            return
        sizes = [images] * len(self.dataloader)
        # Only the last micro-batch of an epoch can be smaller, unless the dataloader
        # drops it.
        missing = len(sizes) * images - len(self._sampler)
        if missing > 0:
            sizes[-1] -= missing
        for start in range(0, len(sizes), count):
            yield sizes[start : start + count]
