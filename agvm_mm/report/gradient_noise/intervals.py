"""Noise scale of every module from sums over the gradients of many replicas.

n replicas of b images each are taken in order, in J blocks of the same number of
replicas, a power of two. Inside a block the squared norms of the means of groups of 2,
4, 8 ... consecutive replicas are kept; beyond a block the inner products of the block
means give them. From these sums follow signal and noise at every batch of k replicas,
Phi and mu there, the noise scale of all images and what it predicts for larger batches.

Intervals are those of the delete-one-block jackknife with Student's t (Tukey, 1958;
Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11). They are
computed for signal / noise, which is nearly linear in the sums, and for the logarithm
of the ratio of two Phi, and then transformed.

Everything here is plain arithmetic in float64: no network, no communication.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from agvm_mm.method.modulator import EPS, raw_multiplier
from agvm_mm.method.noise_scale import (
    ALL,
    extra_images,
    saved_updates,
    signal_and_noise_from_replicas,
)

BLOCKS = 16
"""Fewest blocks, if there are as many replicas; there are fewer than twice as many."""
BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 10240)
"""Batches of the table, in images."""
CONFIDENCE = 0.95


def divide_replicas(replicas: int, ranks: int = 1) -> tuple[int, int]:
    """Return the number of blocks, as many on each rank, and the replicas of each.

    They make at most so many replicas.
    """
    size = 1
    while 2 * size * max(BLOCKS, ranks) <= replicas:
        size *= 2
    return replicas // size // ranks * ranks, size


class Estimate(NamedTuple):
    """Number with the ends of its interval of 95%."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class GradientSums:
    """Sums over the gradients of all replicas, in float64.

    Args:
        modules: Names of the modules.
        images_per_replica: b.
        block_size: Replicas of a block, a power of two.
        group_sq: Mean over the groups of 2^i consecutive replicas of a block of
            |mean of the group|^2; shape (modules, log2(block_size) + 1, blocks).
        gram: Inner products of the mean gradients of the blocks; shape (modules,
            blocks, blocks).
    """

    modules: tuple[str, ...]
    images_per_replica: int
    block_size: int
    group_sq: Tensor
    gram: Tensor

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.gram.shape[-1]

    @property
    def replicas(self) -> int:
        """Number of replicas."""
        return self.blocks * self.block_size

    @property
    def images(self) -> int:
        """Number of images."""
        return self.replicas * self.images_per_replica

    def with_all(self) -> 'GradientSums':
        """Return the same with the whole network as a further module."""
        group_sq, gram = (
            torch.cat([x, x.sum(0, keepdim=True)]) for x in (self.group_sq, self.gram)
        )
        modules = (*self.modules, ALL)
        return replace(self, modules=modules, group_sq=group_sq, gram=gram)

    def signal_and_noise(
        self, group: int | None = None, without: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return |g|^2 and s^2, from the replicas within each group; shape (modules,).

        Each group gives an unbiased estimate, and these are averaged.

        Args:
            group: Consecutive replicas of a group, a power of two from 2 on. Defaults
                to None, all replicas in one group.
            without: Block that is left out, also of its group. Defaults to None.
        """
        kept = [block for block in range(self.blocks) if block != without]
        size = self.block_size
        if group is not None and group <= size:
            level = group.bit_length() - 1
            parts = [(kept, group, self.group_sq[:, level, kept].mean(1))]
        else:
            width = self.blocks if group is None else group // size
            starts = range(0, self.blocks - width + 1, width)
            spans = ([b for b in kept if s <= b < s + width] for s in starts)
            parts = [
                (span, len(span) * size, self.gram[:, span][:, :, span].mean((1, 2)))
                for span in spans
                if len(span) * size >= 2
            ]
        found = []
        for blocks, replicas, mean_sq in parts:
            local_sq = self.group_sq[:, 0, blocks].mean(1)
            images = replicas * self.images_per_replica
            pair = signal_and_noise_from_replicas(local_sq, mean_sq, replicas, images)
            found.append(torch.stack(pair))
        weights = torch.tensor([replicas for _, replicas, _ in parts]).double()
        signal, noise = torch.stack(found, 2) @ (weights / weights.sum())
        return signal, noise

    def ratios(self, group: int | None = None) -> Tensor:
        """Return signal / noise of all blocks, and without each of them.

        Shape (modules, 1 + blocks), or (modules, 1) if nothing is left to compare
        without a block.
        """
        # A single group may have nothing left to compare without one of its blocks.
        whole = group or self.replicas
        left = whole - self.block_size if self.replicas < 2 * whole else whole
        parts = range(self.blocks) if left >= 2 else ()
        pairs = (self.signal_and_noise(group, block) for block in (None, *parts))
        return torch.stack([signal / noise for signal, noise in pairs], 1)


class ModuleNoise(NamedTuple):
    """Signal and noise of a module, or of the whole network.

    Attributes:
        signal: Estimate of |g|^2. May be at or below 0.
        noise: Estimate of s^2.
        noise_scale: In images; None if not resolved: its interval reaches 0 signal.
        lower_bound: Lower end of the interval of the noise scale, also if that is not
            resolved; None without an interval.
    """

    signal: float
    noise: float
    noise_scale: Estimate | None
    lower_bound: float | None


class BatchRow(NamedTuple):
    """What a batch does.

    Attributes:
        batch: Images.
        measured: Whether Phi and mu are measured on groups of so many images, instead
            of predicted from the noise scale of all images.
        phi: Phi by module; None if not resolved.
        mu: Multiplier by module, without momentum; None if not resolved.
        saved_updates: Share of the updates that it saves against half of it; None if
            the noise scale of the network is not resolved.
        extra_images: Share of images that it costs on top of half of it; None as
            before.
    """

    batch: int
    measured: bool
    phi: dict[str, Estimate | None]
    mu: dict[str, Estimate | None]
    saved_updates: float | None
    extra_images: float | None


class NoiseReport:
    """What the sums say about the modules and about batches of any size.

    Args:
        sums: Of a measurement.
        anchor: Module that the others are compared with.
        ratio_bounds: Smallest and largest ratio of variances.

    Attributes:
        images: Images of all replicas.
        images_per_replica: b.
        blocks: Blocks of the jackknife.
        modules: Noise of each module, and of the whole network as 'all'.
        batches: What batches do, the smallest first: all that can be measured, and
            :data:`BATCHES`.
    """

    def __init__(
        self, sums: GradientSums, anchor: str, ratio_bounds: tuple[float, float]
    ) -> None:
        sums = sums.with_all()
        self.images = sums.images
        self.images_per_replica = sums.images_per_replica
        self.blocks = sums.blocks
        self.anchor, self.ratio_bounds = anchor, ratio_bounds
        of_all = sums.ratios()
        found = zip(sums.modules, *sums.signal_and_noise(), of_all, strict=True)
        self.modules = {name: _module_noise(*each) for name, *each in found}
        powers = [2**i for i in range(1, sums.replicas.bit_length())]
        measured = {group * sums.images_per_replica: group for group in powers}
        self.batches = []
        for batch in sorted({*BATCHES, *measured}):
            group = measured.get(batch)
            ratios = sums.ratios(group) if group else of_all
            by_module = dict(zip(sums.modules, ratios, strict=True))
            self.batches.append(self._row(batch, by_module, group is not None))

    def _row(self, batch: int, ratios: dict[str, Tensor], measured: bool) -> BatchRow:
        names = [name for name in ratios if name != ALL]
        known = [name for name in names if measured or self.modules[name].noise_scale]
        phi: dict[str, Estimate | None] = dict.fromkeys(names)
        mu: dict[str, Estimate | None] = dict.fromkeys(names)
        for name in known:
            ratio = torch.tensor(interval(ratios[name]), dtype=torch.float64)
            value, high, low = _phi(ratio, batch).tolist()
            phi[name] = Estimate(value, low, high)
        if self.anchor in known:
            of_anchor = _phi(ratios[self.anchor], batch) + EPS
            for name in known:
                found = interval((of_anchor / (_phi(ratios[name], batch) + EPS)).log())
                # Ends may be infinite; the bounds hold for them as well.
                quotients = (math.exp(min(end, 700)) for end in found)
                ends = (raw_multiplier(q, 1, self.ratio_bounds) for q in quotients)
                mu[name] = Estimate(*ends)
            mu[self.anchor] = Estimate(1.0, 1.0, 1.0)
        scale, costs = self.modules[ALL].noise_scale, (None, None)
        if scale:
            costs = saved_updates(batch, scale.value), extra_images(batch, scale.value)
        return BatchRow(batch, measured, phi, mu, *costs)


def _module_noise(signal: Tensor, noise: Tensor, ratios: Tensor) -> ModuleNoise:
    ratio = interval(ratios)
    scale = low = None
    if ratio.low > 0:
        scale = Estimate(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
    if 0 < ratio.high < math.inf:
        low = 1 / ratio.high
    return ModuleNoise(signal.item(), noise.item(), scale, low)


def _phi(ratio: Tensor, batch: int) -> Tensor:
    """Return 1 / (1 + B signal / (2 noise)), at most 2, the largest Phi there is."""
    return 1 / (1 + (batch * ratio).clamp(min=-1) / 2)


def interval(values: Tensor) -> Estimate:
    """Return a statistic with its jackknife interval.

    The squared standard error is (J - 1) / J times the sum of the squared deviations
    of the J statistics without a block from their mean.

    Args:
        values: Of all blocks, and without each of them, shape (1 + J,). Shape (1,) if
            these cannot be computed, which gives an infinite interval, as one that is
            not finite does (without noise, signal / noise is infinite).
    """
    value, deleted = values[0].item(), values[1:]
    count = len(deleted)
    if not count or not deleted.isfinite().all():
        return Estimate(value, -math.inf, math.inf)
    error = math.sqrt((count - 1) * deleted.var(correction=0).item())
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * error  # Student's t.
    return Estimate(value, value - half, value + half)
