"""Modulator and schedule against numbers computed by hand; invalid settings."""

import math

import pytest

from agvm_mm.method.modulator import MeasurementSchedule, Modulator, raw_multiplier
from gpu_check import golden

BOUNDS = (0.5, 10.0)


@pytest.mark.parametrize('estimator', golden.VARIANCES)
def test_hand_checked_case(estimator):
    phi = golden.VARIANCES[estimator]
    raw = raw_multiplier(phi['backbone'], phi['head'], BOUNDS)
    assert raw == pytest.approx(golden.RAW_MULTIPLIER[estimator], abs=1e-7)
    assert raw**2 == pytest.approx(golden.RATIO[estimator], abs=1e-6)
    modulator = Modulator(['backbone', 'head'])
    assert modulator.update(phi)
    assert modulator.multipliers['backbone'] == 1.0
    assert modulator.multipliers['head'] == pytest.approx(
        golden.MULTIPLIER[estimator], abs=1e-7
    )


def test_ratio_is_bounded_on_both_sides():
    assert raw_multiplier(1.0, 1e-9, BOUNDS) == pytest.approx(math.sqrt(10))
    assert raw_multiplier(1e-9, 1.0, BOUNDS) == pytest.approx(math.sqrt(0.5))
    assert raw_multiplier(0.0, 0.0, BOUNDS) == 1.0


def test_multiplier_moves_halfway_in_23_measurements():
    modulator = Modulator(['backbone', 'head'])
    for _ in range(23):
        modulator.update({'backbone': 0.4, 'head': 0.1})
    target = raw_multiplier(0.4, 0.1, BOUNDS)
    moved = (modulator.multipliers['head'] - 1) / (target - 1)
    assert moved == pytest.approx(1 - 0.97**23)
    assert moved == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    'variances',
    [
        {'backbone': float('nan'), 'head': 0.1},
        {'backbone': 0.4, 'head': float('inf')},
        {'head': 0.1},
        {},
    ],
)
def test_unusable_measurement_is_skipped(variances):
    modulator = Modulator(['backbone', 'head'])
    assert not modulator.update(variances)
    assert modulator.multipliers == {'backbone': 1.0, 'head': 1.0}


def test_module_without_gradient_keeps_its_multiplier():
    modulator = Modulator(['backbone', 'neck', 'mask_head'])
    assert modulator.update({'backbone': 0.4, 'neck': 0.1})
    assert modulator.multipliers['mask_head'] == 1.0
    assert modulator.multipliers['neck'] > 1.0


def test_loaded_state_continues_identically():
    one = Modulator(['backbone', 'head'])
    one.update({'backbone': 0.4, 'head': 0.1})
    other = Modulator(['backbone', 'head'])
    other.load_state_dict(one.state_dict())
    for modulator in (one, other):
        modulator.update({'backbone': 0.3, 'head': 0.2})
    assert one.multipliers == other.multipliers


def test_state_of_other_modules_is_loaded_where_names_match():
    one = Modulator(['backbone', 'neck', 'head'])
    one.update({'backbone': 0.4, 'neck': 0.1, 'head': 0.2})
    other = Modulator(['neck', 'backbone', 'mask_head'], anchor='neck')
    other.load_state_dict(one.state_dict())
    assert other.multipliers == {'neck': 1.0, 'backbone': 1.0, 'mask_head': 1.0}
    third = Modulator(['backbone', 'head', 'mask_head'])
    third.load_state_dict(one.state_dict())
    assert third.multipliers['head'] == one.multipliers['head'] != 1
    assert third.multipliers['mask_head'] == 1


def test_unknown_anchor_lists_modules_and_suggests_nearest():
    message = "anchor='backbon'.*backbone, head.*Did you mean 'backbone'"
    with pytest.raises(ValueError, match=message):
        Modulator(['backbone', 'head'], anchor='backbon')


INVALID_SETTINGS = [
    (dict(momentum=1.0), ValueError),
    (dict(momentum=-0.1), ValueError),
    (dict(momentum=float('nan')), ValueError),
    (dict(momentum='0.97'), TypeError),
    (dict(momentum=True), TypeError),
    (dict(ratio_bounds=(0.0, 10.0)), ValueError),
    (dict(ratio_bounds=(1.5, 10.0)), ValueError),
    (dict(ratio_bounds=(0.5, 0.9)), ValueError),
    (dict(ratio_bounds=(0.5, float('inf'))), ValueError),
    (dict(ratio_bounds=0.5), TypeError),
    (dict(ratio_bounds=(0.5, 1, 2)), TypeError),
]


def test_invalid_settings_are_refused(subtests):
    for setting, error in INVALID_SETTINGS:
        with (
            subtests.test(setting=setting, error=error),
            pytest.raises(error, match=next(iter(setting))),
        ):
            Modulator(['backbone', 'head'], **setting)


def test_multiples_of_interval_from_begin_to_end_are_measured():
    schedule = MeasurementSchedule(interval=10, begin=15, end=50)
    measured = [t for t in range(100) if schedule.is_measured(t)]
    assert measured == [20, 30, 40, 50]
    active = [t for t in range(100) if schedule.is_active(t)]
    assert active == list(range(15, 51))


def test_first_update_is_number_0():
    assert MeasurementSchedule().is_measured(0)
    assert not MeasurementSchedule(begin=1).is_measured(0)


INVALID_SCHEDULES = [
    (dict(interval=0), ValueError),
    (dict(interval=2.5), TypeError),
    (dict(interval=True), TypeError),
    (dict(begin=-1), ValueError),
    (dict(begin='10'), TypeError),
    (dict(begin=10, end=9), ValueError),
]


def test_invalid_schedules_are_refused(subtests):
    for setting, error in INVALID_SCHEDULES:
        with (
            subtests.test(setting=setting, error=error),
            pytest.raises(error, match=list(setting)[-1]),
        ):
            MeasurementSchedule(**setting)
