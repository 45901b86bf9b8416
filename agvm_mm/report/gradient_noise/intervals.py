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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from agvm_mm.method.modulator import EPS, raw_multiplier
from agvm_mm.method.noise_scale import (
    ALL,
    SignalAndNoise,
    extra_images,
    saved_updates,
    signal_and_noise_from_replicas,
)

BLOCKS = 16
"""Fewest blocks, if there are as many replicas; there are fewer than twice as many."""
BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 10240)
"""Batches of the table, in images."""
CONFIDENCE = 0.95


class Blocks(NamedTuple):
    """Division of replicas into blocks.

    Attributes:
        count: Number of blocks, a multiple of the number of ranks.
        size: Replicas of a block, a power of two.
    """

    count: int
    size: int

    @property
    def replicas(self) -> int:
        """Replicas of all blocks."""
        return self.count * self.size


def divide_replicas(replicas: int, ranks: int = 1) -> Blocks:
    """Return the blocks of at most so many replicas; each rank has as many blocks."""
    size = 1
    while 2 * size * max(BLOCKS, ranks) <= replicas:
        size *= 2
    return Blocks(replicas // size // ranks * ranks, size)


class Estimate(NamedTuple):
    """Number with its interval of 95%.

    Attributes:
        value: The number.
        low: Lower end.
        high: Upper end.
    """

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
        return GradientSums(
            (*self.modules, ALL),
            self.images_per_replica,
            self.block_size,
            *(
                torch.cat([x, x.sum(0, keepdim=True)])
                for x in (self.group_sq, self.gram)
            ),
        )

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
        if group is not None and group <= self.block_size:
            local_sq = self.group_sq[:, 0, kept].mean(1)
            mean_sq = self.group_sq[:, group.bit_length() - 1, kept].mean(1)
            images = group * self.images_per_replica
            return signal_and_noise_from_replicas(local_sq, mean_sq, group, images)
        width = self.blocks if group is None else group // self.block_size
        found, weights = [], []
        for start in range(0, self.blocks - width + 1, width):
            members = [block for block in kept if start <= block < start + width]
            replicas = len(members) * self.block_size
            if replicas >= 2:
                found.append(self._of_blocks(members, replicas))
                weights.append(replicas)
        shares = torch.tensor(weights).double() / sum(weights)
        signals, noises = (torch.stack(each, 1) for each in zip(*found, strict=True))
        return signals @ shares, noises @ shares

    def _of_blocks(self, members: list[int], replicas: int) -> tuple[Tensor, Tensor]:
        local_sq = self.group_sq[:, 0, members].mean(1)
        mean_sq = self.gram[:, members][:, :, members].mean((1, 2))
        images = replicas * self.images_per_replica
        return signal_and_noise_from_replicas(local_sq, mean_sq, replicas, images)


@dataclass(frozen=True)
class BatchRow:
    """What a batch does.

    Args:
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


@dataclass(frozen=True)
class NoiseReport:
    """Result of a measurement.

    Args:
        images: Images of all replicas.
        images_per_replica: b.
        blocks: Blocks of the jackknife.
        anchor: Name of the anchor.
        ratio_bounds: Smallest and largest ratio of variances.
        modules: Signal and noise by module, and of the whole network as 'all'.
        noise_scales: Noise scale in images by module, and of 'all'; None if not
            resolved: its interval reaches 0 signal.
        lower_bounds: Lower end of the interval of each noise scale, also of those that
            are not resolved; None without an interval.
        rows: What batches do, in their order.
    """

    images: int
    images_per_replica: int
    blocks: int
    anchor: str
    ratio_bounds: tuple[float, float]
    modules: dict[str, SignalAndNoise]
    noise_scales: dict[str, Estimate | None]
    lower_bounds: dict[str, float | None]
    rows: list[BatchRow]


def make_report(
    sums: GradientSums,
    anchor: str,
    ratio_bounds: tuple[float, float],
    batches: Sequence[int] = BATCHES,
) -> NoiseReport:
    """Return what the sums say about the modules and about batches of any size.

    Args:
        sums: Of a measurement, without modules that had no gradient.
        anchor: Module that the others are compared with.
        ratio_bounds: Smallest and largest ratio of variances.
        batches: Batches to predict where they cannot be measured. All batches that can
            be measured are reported.
    """
    sums = sums.with_all()
    of_all = _Ratios(sums, None)
    inverse = {name: of_all.interval(i) for i, name in enumerate(sums.modules)}
    noise_scales = {name: _noise_scale(each) for name, each in inverse.items()}
    levels = [2**i for i in range(1, sums.replicas.bit_length())]
    measured = {level * sums.images_per_replica: level for level in levels}
    rows = []
    for batch in sorted({*batches, *measured}):
        if batch in measured:
            ratios, known = _Ratios(sums, measured[batch]), set(sums.modules)
        else:
            ratios = of_all
            known = {name for name, scale in noise_scales.items() if scale}
        rows.append(_row(ratios, batch, known, anchor, ratio_bounds, noise_scales[ALL]))
    signals, noises = sums.signal_and_noise()
    return NoiseReport(
        images=sums.images,
        images_per_replica=sums.images_per_replica,
        blocks=sums.blocks,
        anchor=anchor,
        ratio_bounds=tuple(ratio_bounds),
        modules={
            name: SignalAndNoise(signal, noise)
            for name, signal, noise in zip(
                sums.modules, signals.tolist(), noises.tolist(), strict=True
            )
        },
        noise_scales=noise_scales,
        lower_bounds={
            name: 1 / each.high if 0 < each.high < math.inf else None
            for name, each in inverse.items()
        },
        rows=rows,
    )


class _Ratios:
    """Signal / noise of each module, from all blocks and without each of them.

    Args:
        sums: The sums.
        group: See :meth:`GradientSums.signal_and_noise`.
    """

    def __init__(self, sums: GradientSums, group: int | None) -> None:
        self.measured = group is not None
        self.modules = sums.modules
        self.whole = _ratio(*sums.signal_and_noise(group))
        # With two replicas nothing is left to compare.
        parts = range(sums.blocks) if sums.replicas - sums.block_size >= 2 else ()
        deleted = [_ratio(*sums.signal_and_noise(group, block)) for block in parts]
        self.deleted = torch.stack(deleted, 1) if deleted else None

    def interval(
        self, index: int, transform: Callable[[Tensor], Tensor] = lambda ratio: ratio
    ) -> Estimate:
        """Return a function of signal / noise of a module, with its interval."""
        deleted = None if self.deleted is None else transform(self.deleted[index])
        return jackknife(transform(self.whole[index]).item(), deleted)

    def phi(self, index: int, batch: int) -> Estimate:
        """Return Phi of a module at a batch."""
        ratio = self.interval(index)
        ends = _phi(torch.tensor(ratio, dtype=torch.float64), batch)
        value, high, low = ends.tolist()
        return Estimate(value, low, high)

    def mu(
        self, index: int, anchor: int, batch: int, bounds: tuple[float, float]
    ) -> Estimate:
        """Return the multiplier of a module at a batch."""
        if index == anchor:
            return Estimate(1.0, 1.0, 1.0)

        def log_ratio(ratios: Tensor) -> Tensor:
            variances = _phi(ratios, batch) + EPS
            return (variances[anchor] / variances[index]).log()

        deleted = None if self.deleted is None else log_ratio(self.deleted)
        found = jackknife(log_ratio(self.whole).item(), deleted)
        # Ends may be infinite; the bounds hold for them as well.
        ends = (raw_multiplier(math.exp(min(end, 700)), 1, bounds) for end in found)
        return Estimate(*ends)


def _ratio(signal: Tensor, noise: Tensor) -> Tensor:
    return signal / noise


def _phi(ratio: Tensor, batch: int) -> Tensor:
    """Return 1 / (1 + B signal / (2 noise)), at most 2, the largest Phi there is."""
    return 1 / (1 + (batch * ratio).clamp(min=-1) / 2)


def _noise_scale(ratio: Estimate) -> Estimate | None:
    """Return the noise scale from signal / noise; None if that may be 0."""
    if not ratio.low > 0:
        return None
    return Estimate(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)


def _row(
    ratios: _Ratios,
    batch: int,
    known: set[str],
    anchor: str,
    bounds: tuple[float, float],
    scale: Estimate | None,
) -> BatchRow:
    modules = {n: i for i, n in enumerate(ratios.modules) if n != ALL}
    phi = {n: ratios.phi(i, batch) if n in known else None for n, i in modules.items()}
    mu = {
        name: ratios.mu(index, modules[anchor], batch, bounds)
        if {name, anchor} <= known
        else None
        for name, index in modules.items()
    }
    costs = (saved_updates, extra_images)
    saved, extra = (cost(batch, scale.value) if scale else None for cost in costs)
    return BatchRow(batch, ratios.measured, phi, mu, saved, extra)


def jackknife(value: float, deleted: Tensor | None) -> Estimate:
    """Return a statistic with its jackknife interval.

    The squared standard error is (J - 1) / J times the sum of the squared deviations
    of the J statistics without a block from their mean.

    Args:
        value: The statistic of all blocks.
        deleted: The statistics without each block, shape (J,). None if they cannot be
            computed, which gives an infinite interval.
    """
    if deleted is None:
        return Estimate(value, -math.inf, math.inf)
    count = len(deleted)
    error = math.sqrt((count - 1) * deleted.var(correction=0).item())
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * error  # Student's t.
    return Estimate(value, value - half, value + half)
