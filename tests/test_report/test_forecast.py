"""Forecasts from noise scales, against numbers worked out here."""

import json
import math
from pathlib import Path

import pytest
from logfiles import write_log

from agvm_mm.report import forecast
from agvm_mm.report.forecast import NoiseScales

NAN = math.nan


def test_noise_scales_of_a_run_are_its_last(tmp_path: Path):
    log = write_log(
        tmp_path,
        {'step': 10, 'agvm/phi_head': 0.5, 'agvm/noise_scale_head': 5.0},
        {'step': 50, 'lr': 0.1},
        {'step': 1020, 'agvm/phi_head': 0.5, 'agvm/noise_scale_all': 7.0},
        {'step': 1, 'mAP': 0.5},
    )
    for path in (tmp_path, log):
        noise = forecast.noise_of_run(path)
        assert math.isnan(noise.modules.pop('head')) and not noise.modules
        assert noise.whole == 7
        assert noise.source == f'at step 1,020 of {path}'


def test_log_without_noise_scales_is_an_error(tmp_path: Path):
    write_log(tmp_path, {'step': 2, 'lr': 0.1})
    with pytest.raises(ValueError, match="no 'agvm/noise_scale_<module>' in its log"):
        forecast.noise_of_run(tmp_path)
    with pytest.raises(FileNotFoundError, match='folder of a run'):
        forecast.noise_of_run(tmp_path / 'nowhere')


def test_noise_scales_of_other_modules_are_refused():
    noise = NoiseScales({'backbone': 5.0, 'bbox_head': 6.0}, 7.0, 'in FILE')
    forecast.check_same_modules(noise, ['bbox_head', 'backbone'])
    for modules in (['backbone'], ['backbone', 'bbox_head', 'neck']):
        with pytest.raises(ValueError, match='in FILE are of backbone, bbox_head'):
            forecast.check_same_modules(noise, modules)


def test_multipliers_settle_at_the_ratio_of_predicted_variances():
    # Phi(512) = 2 N / (2 N + 512): 0.8, 0.2 and 0.95.
    scales = dict(backbone=1024.0, head=64.0, neck=4864.0)
    settled = forecast.settled_multipliers(512, scales, 'backbone', (0.5, 10.0))
    expected = dict(backbone=1, head=2, neck=(0.8 / 0.95) ** 0.5)
    assert settled == pytest.approx(expected, rel=1e-5)
    bounded = forecast.settled_multipliers(512, scales, 'backbone', (0.9, 2.0))
    expected |= dict(head=2**0.5, neck=0.9**0.5)
    assert bounded == pytest.approx(expected, rel=1e-5)
    other = forecast.settled_multipliers(512, scales, 'head', (0.5, 10.0))
    assert other['backbone'] == pytest.approx(0.5**0.5)
    assert other['head'] == 1


def test_multiplier_needs_its_own_noise_scale_and_the_anchors():
    def settled(**scales: float) -> list[str]:
        found = forecast.settled_multipliers(512, scales, 'backbone', (0.5, 10.0))
        return [name for name, mu in found.items() if not math.isnan(mu)]

    assert settled(backbone=9.0, neck=NAN, head=5.0) == ['backbone', 'head']
    assert settled(backbone=NAN, neck=9.0) == []


def test_other_batches_train_as_far_at_the_same_throughput():
    # With N = B updates are 2 in units of the fewest; 1 + 2 at half, 1 + 1/2 at double.
    hours = 3680 * 512 / 1024 / 3600
    assert forecast.describe_time(512, 3680, hours, 8, 512.0) == [
        f'time        {hours:.3f} hours, {8 * hours:.2f} GPU-hours, without validation',
        '            as far at batch 256: about 5,520 updates, '
        f'{8 * hours * 1.5 / 2:.2f} GPU-hours',
        '            as far at batch 1,024: about 2,760 updates, '
        f'{8 * hours * 0.75 * 2:.2f} GPU-hours',
    ]


def test_share_of_updates_is_that_against_half_the_batch():
    noise = NoiseScales({'backbone': 12345.6, 'head': NAN}, 512.0, 'in FILE')
    # Updates 1 + 512/512 against 1 + 512/256; images 1 + 512/512 against 1 + 256/512.
    assert forecast.describe_noise(noise, 512) == [
        'noise scale backbone: 12,346 images',
        'noise scale head: not resolved',
        'noise scale whole network: 512 images, in FILE',
        'saved       33% of the updates (50% at most) for 33% more images, against '
        'batch 256, each with its best learning rate',
    ]


def test_what_is_not_resolved_is_not_forecast():
    noise = NoiseScales({'head': 5.0}, NAN, 'in FILE')
    assert forecast.describe_noise(noise, 512)[1:] == [
        'noise scale whole network: not resolved, in FILE',
        'saved       not resolved',
    ]
    line = forecast.describe_multipliers(dict(backbone=1.0, neck=NAN), acts=True)
    assert line == 'mu          settles at: backbone 1.00, neck not resolved'
    first, *others = forecast.describe_time(512, 3600, 0.5, 8, NAN)
    assert first == 'time        0.5 hours, 4 GPU-hours, without validation'
    assert others == ['            of other batches: not resolved']
    assert forecast.describe_time(512, 3600, 0.5, 8, None) == [first]


@pytest.mark.parametrize(
    'number, text',
    [(0.0012345, '0.00123'), (12.13, '12.1'), (99.96, '100'), (12345.6, '12,346')],
)
def test_numbers_have_three_digits_or_no_fraction(number: float, text: str):
    assert forecast.format_number(number) == text


@pytest.mark.parametrize('content', ['', '{"step": 1}\n{"step": 2}', '[]', '{"a": 1}'])
def test_file_of_something_else_is_refused(content: str, tmp_path: Path):
    file = tmp_path / 'noise.json'
    file.write_text(content)
    with pytest.raises(ValueError, match='is not a file of tools/noise_scale.py'):
        forecast.noise_of_file(file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        forecast.noise_of_file(file)


def test_noise_scales_of_a_file(tmp_path: Path):
    file = tmp_path / 'noise.json'
    parts = dict(
        backbone=dict(value=9.0, low=8.0, high=10.0),
        head=None,
        all=dict(value=5.0, low=4.0, high=6.0),
    )
    modules = {name: dict(noise_scale=scale) for name, scale in parts.items()}
    content = dict(images=4096, images_per_replica=2, modules=modules)
    file.write_text(json.dumps(content))
    noise = forecast.noise_of_file(file)
    assert noise.modules['backbone'] == 9 and math.isnan(noise.modules['head'])
    assert list(noise.modules) == ['backbone', 'head'] and noise.whole == 5
    assert noise.micro_batch == 2
    assert noise.source == f'on 4,096 images in replicas of 2, in {file}'
