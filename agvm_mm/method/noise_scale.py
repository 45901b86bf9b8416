"""Gradient noise scale of one module, and what it predicts for a batch of any size.

The gradient of B images is the gradient of the whole data set, the signal g, and noise
whose squared norm is s^2 / B. The noise scale s^2 / |g|^2, in images, is the batch at
which both are equally large: at much smaller batches the gradient is mostly
noise, and much larger ones add little. Source: McCandlish et al., "An Empirical Model
of Large-Batch Training", 2018 (arXiv 1812.06162). The derivation of each formula is in
``docs/noise_scale.md``.

Everything here is plain arithmetic: no network, no optimizer, no communication.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

ALL = 'all'
"""Name of the whole network next to those of its modules."""
UNRESOLVED = math.nan
"""Noise scale of a signal that the measurements do not resolve."""
MOMENTUM = 0.9
"""Weight of the past in the averages of signal and noise."""


class SignalAndNoise(NamedTuple):
    """Signal |g|^2 and noise s^2 of the gradient of one module.

    Attributes:
        signal: Estimate of |g|^2. May be at or below 0, as its error has any sign.
        noise: Estimate of s^2, the variance of the gradient of one image, summed over
            the elements.
    """

    signal: float
    noise: float

    @property
    def noise_scale(self) -> float:
        """Noise scale in images; NaN, not resolved, if the signal is not above 0."""
        return self.noise / self.signal if self.signal > 0 else UNRESOLVED


def signal_and_noise_from_replicas(
    local_sq: Tensor, mean_sq: Tensor, replicas: int, images: float
) -> tuple[Tensor, Tensor]:
    """Return |g|^2 = (n T - L) / (n - 1) and s^2 = B (L - T) / (n - 1).

    Both are unbiased. Replicas of different sizes count in L and G by their images.

    Args:
        local_sq: L, the mean over the replicas of |g_r|^2; any shape.
        mean_sq: T = |G|^2, the same shape.
        replicas: n, at least 2.
        images: B, images of all replicas.
    """
    signal = (replicas * mean_sq - local_sq) / (replicas - 1)
    noise = images * (local_sq - mean_sq) / (replicas - 1)
    return signal, noise.clamp(min=0)  # It is below 0 by rounding only.


def signal_and_noise_from_halves(
    dot: Tensor,
    first_sq: Tensor,
    second_sq: Tensor,
    images: float,
    first_share: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Return |g|^2 = G_A . G_B and s^2 = a b B |G_A - G_B|^2.

    a and b = 1 - a are the shares of the halves in the images. With a = 1/2 the noise
    is (B / 2) ((|G_A|^2 + |G_B|^2) / 2 - G_A . G_B). Both are unbiased.

    Args:
        dot: G_A . G_B, any shape.
        first_sq: |G_A|^2, the same shape.
        second_sq: |G_B|^2, the same shape.
        images: B, images of both halves.
        first_share: a. Defaults to 0.5.
    """
    scale = images * first_share * (1 - first_share)
    noise = scale * (first_sq + second_sq - 2 * dot)
    return dot, noise.clamp(min=0)  # It is below 0 by rounding only.


def predicted_variance(images: float, noise_scale: float) -> float:
    """Return Phi(B) = 1 / (1 + B / (2 B_noise)), expected at a batch of B images."""
    return 2 * noise_scale / (2 * noise_scale + images)


def relative_updates(images: float, noise_scale: float) -> float:
    """Return 1 + B_noise / B, updates of a training in units of the fewest possible."""
    return 1 + noise_scale / images


def saved_updates(images: float, noise_scale: float) -> float:
    """Return the share of updates that a batch saves against half of it, up to 0.5."""
    half = relative_updates(images / 2, noise_scale)
    return 1 - relative_updates(images, noise_scale) / half


def extra_images(images: float, noise_scale: float) -> float:
    """Return the share of images that a batch costs on top of half of it, up to 1."""
    return 1 - 2 * saved_updates(images, noise_scale)  # Images are updates x batch.


class NoiseAverages:
    """Exponential averages of the signal and the noise of each module.

    They are averaged separately: the quotient of one measurement has no mean where its
    signal may come out at 0. The averages are those of all measurements so far at the
    beginning, not pulled towards 0. They start again when the learning rate falls to
    half or less: gradients are much smaller after such a step, and those before would
    outweigh them for long.
    """

    def __init__(self) -> None:
        # Of signal, noise and weights.
        self._sums: dict[str, list[float]] = {}
        self._learning_rate = 0.0

    def update(
        self, measured: Mapping[str, SignalAndNoise], learning_rate: float
    ) -> None:
        """Add a measurement, at a learning rate of the schedule, by module.

        A module that is missing keeps its averages.
        """
        if self._learning_rate and learning_rate <= self._learning_rate / 2:
            self._sums = {}
        self._learning_rate = learning_rate
        for name, (signal, noise) in measured.items():
            old = self._sums.get(name, (0.0, 0.0, 0.0))
            new = (signal, noise, 1.0)
            self._sums[name] = [
                MOMENTUM * before + (1 - MOMENTUM) * now
                for before, now in zip(old, new, strict=True)
            ]

    def averages(self) -> dict[str, SignalAndNoise]:
        """Return the averages by module, and those of the network as :data:`ALL`."""
        modules = {
            name: SignalAndNoise(signal / weight, noise / weight)
            for name, (signal, noise, weight) in self._sums.items()
        }
        if not modules:
            return {}
        sums = (sum(values) for values in zip(*modules.values(), strict=True))
        return modules | {ALL: SignalAndNoise(*sums)}

    def noise_scales(self) -> dict[str, float]:
        """Return the noise scales in images; NaN for those that are not resolved."""
        return {name: each.noise_scale for name, each in self.averages().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of signal, noise and weights by module, and the rate."""
        return dict(sums=dict(self._sums), learning_rate=self._learning_rate)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a saved state in place of this one."""
        self._learning_rate = state_dict['learning_rate']
        self._sums = dict(state_dict['sums'])
