"""When AGVM measures and when it acts, counted in optimizer updates from 0."""

from dataclasses import dataclass

from agvm_mm.checks import check_number


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
