"""From gradient variances to learning-rate multipliers, after AGVM.

At a measured update each module's gradient variance Phi is compared with the
anchor's (the backbone's):

    ratio       r  = clamp((Phi_anchor + eps) / (Phi + eps), low, high)
    multiplier  mu = momentum * mu + (1 - momentum) * sqrt(r),   from mu = 1

and the optimizer steps with lr * mu for the parameters of that module. Source:
Xue et al., NeurIPS 2022 (arXiv 2210.11078).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agvm_mm.validation import check_number, did_you_mean

EPS = 1e-6


def raw_multiplier(
    anchor_variance: float, variance: float, ratio_bounds: tuple[float, float]
) -> float:
    """sqrt of the clamped ratio of two gradient variances.

    Args:
        anchor_variance (float): Phi of the anchor.
        variance (float): Phi of the module.
        ratio_bounds (tuple[float, float]): Smallest and largest ratio.
    """
    low, high = ratio_bounds
    ratio = (anchor_variance + EPS) / (variance + EPS)
    return math.sqrt(min(max(ratio, low), high))


class Modulator:
    """Keeps one learning-rate multiplier for each module of a network.

    Args:
        modules (Sequence[str]): The modules' names.
        anchor (str): The module whose variance the others are matched to; its
            own multiplier stays 1. Defaults to 'backbone'.
        momentum (float): Weight of the past in the moving average, in [0, 1).
            Defaults to 0.97.
        ratio_bounds (tuple[float, float]): Smallest and largest ratio of
            variances, 0 < low <= 1 <= high. Defaults to (0.5, 10.0).

    Raises:
        ValueError: If the anchor is not among the modules or a number is out of
            its range.
        TypeError: If a number is not a number.
    """

    def __init__(
        self,
        modules: Sequence[str],
        *,
        anchor: str = 'backbone',
        momentum: float = 0.97,
        ratio_bounds: tuple[float, float] = (0.5, 10.0),
    ) -> None:
        if anchor not in modules:
            raise ValueError(
                f"anchor='{anchor}' is not a module with trainable parameters; "
                f'there are: {", ".join(modules)}.{did_you_mean(anchor, modules)}'
            )
        check_number('momentum', momentum, low=0, below=1)
        if not isinstance(ratio_bounds, Sequence) or len(ratio_bounds) != 2:
            raise TypeError(
                f'ratio_bounds must be a pair (low, high), got {ratio_bounds!r}'
            )
        check_number('ratio_bounds[0]', ratio_bounds[0], above=0, high=1)
        check_number('ratio_bounds[1]', ratio_bounds[1], low=1)
        self.anchor = anchor
        self.momentum = momentum
        self.ratio_bounds = tuple(ratio_bounds)
        self.multipliers = dict.fromkeys(modules, 1.0)

    def update(self, variances: Mapping[str, float]) -> bool:
        """Move the multipliers by one measurement.

        A module that is not in ``variances`` had no gradient to measure and keeps
        its multiplier.

        Args:
            variances (Mapping[str, float]): Phi by module name.

        Returns:
            bool: False if the measurement was left out, because a variance is
            not finite or the anchor had no gradient.
        """
        if self.anchor not in variances:
            return False
        if not all(math.isfinite(value) for value in variances.values()):
            return False
        for name, variance in variances.items():
            raw = raw_multiplier(variances[self.anchor], variance, self.ratio_bounds)
            self.multipliers[name] = (
                self.momentum * self.multipliers[name] + (1 - self.momentum) * raw
            )
        return True

    def state_dict(self) -> dict:
        """The anchor and the multipliers, as plain Python values."""
        return dict(anchor=self.anchor, multipliers=dict(self.multipliers))

    def load_state_dict(self, state_dict: Mapping) -> None:
        """Take up saved multipliers; modules that were not saved keep theirs."""
        for name, multiplier in state_dict['multipliers'].items():
            if name in self.multipliers and name != self.anchor:
                self.multipliers[name] = multiplier


@dataclass(frozen=True, kw_only=True)
class MeasurementSchedule:
    """Update t is measured if begin <= t <= end and t is a multiple of interval.

    Args:
        interval (int): Updates from one measurement to the next. Defaults to 10.
        begin (int): First update at which AGVM measures and acts. Defaults to 0.
        end (int, optional): Last such update; after it all multipliers are 1.
            Defaults to None, no end.

    Raises:
        TypeError: If a setting is not a whole number.
        ValueError: If one is out of range, or end comes before begin.
    """

    interval: int = 10
    begin: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        check_number('interval', self.interval, low=1, integer=True)
        check_number('begin', self.begin, low=0, integer=True)
        if self.end is not None:
            check_number('end', self.end, low=self.begin, integer=True)

    def is_active(self, update: int) -> bool:
        """Whether the multipliers act at this update."""
        return update >= self.begin and (self.end is None or update <= self.end)

    def is_measured(self, update: int) -> bool:
        """Whether the gradient variances are measured at this update."""
        return self.is_active(update) and update % self.interval == 0
