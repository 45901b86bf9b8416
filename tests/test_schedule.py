"""schedule.py: which updates are measured."""

import pytest

from agvm_mm.schedule import MeasurementSchedule


def test_multiples_of_the_interval_from_begin_to_end():
    schedule = MeasurementSchedule(interval=10, begin=15, end=50)
    measured = [t for t in range(100) if schedule.is_measured(t)]
    assert measured == [20, 30, 40, 50]
    active = [t for t in range(100) if schedule.is_active(t)]
    assert active == list(range(15, 51))


def test_the_first_update_is_number_0():
    assert MeasurementSchedule().is_measured(0)
    assert not MeasurementSchedule(begin=1).is_measured(0)


@pytest.mark.parametrize(
    'setting, error',
    [
        (dict(interval=0), ValueError),
        (dict(interval=2.5), TypeError),
        (dict(interval=True), TypeError),
        (dict(begin=-1), ValueError),
        (dict(begin='10'), TypeError),
        (dict(begin=10, end=9), ValueError),
    ],
)
def test_bad_numbers_are_refused(setting, error):
    with pytest.raises(error, match=list(setting)[-1]):
        MeasurementSchedule(**setting)
