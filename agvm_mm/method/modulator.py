"""Learning-rate multipliers of AGVM: when they are measured, updated and applied.

AGVM is active at the updates t with begin <= t <= end. At each active update that is a
multiple of interval the gradient variance Phi of each module is measured and compared
with that of the anchor (the backbone):

    ratio       r  = clamp((Phi_anchor + eps) / (Phi + eps), low, high)
    multiplier  mu = momentum * mu + (1 - momentum) * sqrt(r),   initially mu = 1

At every active update, measured or not, the optimizer steps with lr * mu for the
parameters of the module; at all others with lr. Source: Xue et al., NeurIPS 2022
(arXiv 2210.11078).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agvm_mm.validation import check_number, did_you_mean

EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class MeasurementSchedule:
    """Updates at which AGVM is active and those at which it measures.

    Args:
        interval: Updates between two measurements. Defaults to 10.
        begin: First active update. Defaults to 0.
        end: Last active update. Defaults to None, no end.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If a setting is out of range or end is before begin.
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
        """Return whether AGVM is active at this update."""
        return update >= self.begin and (self.end is None or update <= self.end)

    def is_measured(self, update: int) -> bool:
        """Return whether gradient variances are measured at this update."""
        return self.is_active(update) and update % self.interval == 0


def raw_multiplier(
    anchor_variance: float, variance: float, ratio_bounds: tuple[float, float]
) -> float:
    """Return sqrt(r), the multiplier of one measurement without momentum.

    The variances are Phi, the bounds the smallest and the largest r.
    """
    low, high = ratio_bounds
    ratio = (anchor_variance + EPS) / (variance + EPS)
    return math.sqrt(min(max(ratio, low), high))


class Modulator:
    """Learning-rate multipliers of the modules of a network.

    Args:
        modules: Names of the modules.
        anchor: Module whose variance the others are compared with; its multiplier
            stays 1. Defaults to 'backbone'.
        momentum: Weight of the previous multiplier in the moving average, in [0, 1).
            Defaults to 0.97.
        ratio_bounds: Smallest and largest ratio of variances, 0 < low <= 1 <= high.
            Defaults to (0.5, 10.0).

    Raises:
        ValueError: If the anchor is not one of the modules or a number is out of
            range.
        TypeError: If a setting has the wrong type.
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
                f"anchor='{anchor}' is not a module with trainable parameters; the "
                f'modules are: {", ".join(modules)}.{did_you_mean(anchor, modules)}'
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
        """Update the multipliers with one measurement, Phi by module name.

        A module without a gradient is missing and keeps its multiplier. Return False
        if the measurement was skipped because a variance is not finite or the anchor
        had no gradient.
        """
        finite = all(map(math.isfinite, variances.values()))
        if not finite or self.anchor not in variances:
            return False
        for name, variance in variances.items():
            raw = raw_multiplier(variances[self.anchor], variance, self.ratio_bounds)
            past = self.momentum * self.multipliers[name]
            self.multipliers[name] = past + (1 - self.momentum) * raw
        return True

    def state_dict(self) -> dict:
        """Return the anchor and the multipliers as plain Python values."""
        return dict(anchor=self.anchor, multipliers=dict(self.multipliers))

    def load_state_dict(self, state_dict: Mapping) -> None:
        """Load saved multipliers; modules without a saved one keep theirs."""
        for name, multiplier in state_dict['multipliers'].items():
            if name in self.multipliers and name != self.anchor:
                self.multipliers[name] = multiplier
