"""The benchmarks in their smallest setting: structure and exact figures, no times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agvm_mm.variance import CPU_PIECE

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))

import common  # noqa: E402

FLOAT32 = 4


def run(script, *arguments):
    """Run a benchmark as a user would; what it prints."""
    result = subprocess.run(
        [sys.executable, ROOT / 'benchmarks' / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def cells(variants):
    return {(row['variant'], row['measured']): row for row in variants}


def assert_times(rows, rounds):
    for row in rows.values():
        assert len(row['seconds_by_round']) == rounds
        for name in ('seconds', 'ratio', 'cpu_ratio'):
            found = row[name]
            assert 0 < found['quartile_1'] <= found['median'] <= found['quartile_3']


@pytest.fixture(scope='module')
def overhead(tmp_path_factory):
    out = tmp_path_factory.mktemp('overhead')
    arguments = '--model digits --rounds 2 --warmup 1 --images 1 --image-size 64'
    printed = run('overhead.py', *arguments.split(), '--out', out)
    return printed, json.loads((out / 'overhead_digits_sgd.json').read_text()), out


def test_overhead_compares_all_variants(overhead):
    _, result, _ = overhead
    rows = cells(result['variants'])
    assert set(rows) == {
        ('plain', False),
        ('plain again', False),
        ('halves', False),
        ('halves', True),
        ('replicas', False),
        ('replicas', True),
    }
    assert_times(rows, rounds=2)
    for variances in result['variances'].values():
        assert set(variances) == set(result['modules'])
        assert all(0 <= phi <= 2 for phi in variances.values())


def test_overhead_counts_the_bytes_that_are_reduced(overhead):
    _, result, _ = overhead
    gradient = FLOAT32 * result['trainable_parameters']
    assert gradient == result['gradient_bytes'] == sum(result['buckets'])
    modules = len(result['modules'])
    assert sum(result['modules'].values()) == result['trainable_parameters']
    extra = {
        ('halves', True): (gradient, FLOAT32 * 3 * modules),
        ('replicas', True): (0, FLOAT32 * 2 * modules),
    }
    for cell, row in cells(result['variants']).items():
        gradients, statistics = extra.get(cell, (0, 0))
        assert row['bytes_reduced'] == dict(
            gradients=gradient + gradients, statistics=statistics
        )


@pytest.mark.skipif(
    not common.storages_tell(), reason='this torch does not tell when memory is freed'
)
def test_overhead_follows_the_estimators_memory(overhead):
    _, result, _ = overhead
    rows = cells(result['variants'])
    halves, replicas = (rows[v, True]['memory'] for v in ('halves', 'replicas'))
    for memory in (halves, replicas):
        assert memory['left_over'] == 0
        largest = max(result['buckets'])
        assert largest <= memory['in_flight'] <= result['gradient_bytes']
    # A copy of each bucket in flight, and scalars; scalars alone. Beside them copies of
    # the pieces of parameters that begin at an odd place, up to four at a time.
    scratch = 4 * FLOAT32 * CPU_PIECE + 10_000
    assert max(result['buckets']) <= halves['own'] <= halves['in_flight'] + scratch
    assert 0 < replicas['own'] <= scratch


def test_overhead_prints_and_writes_its_tables(overhead):
    printed, result, out = overhead
    report = (out / 'overhead_digits_sgd.md').read_text()
    assert report in printed
    assert report.count('| halves ') == 2 + 3 + common.storages_tell()
    assert ('Memory: not measured' in report) != common.storages_tell()
    found = {(t['variant'], t['quantity']): t for t in result['targets']}
    assert list(found) == [
        (variant, f'ratio, {updates}')
        for updates in ('unmeasured', 'measured', 'amortised')
        for variant in ('halves', 'replicas')
    ]
    for variant in ('halves', 'replicas'):
        for clock in ('clock', 'cpu_time'):
            unmeasured, measured, amortised = (
                found[variant, f'ratio, {updates}'][clock]['found']
                for updates in ('unmeasured', 'measured', 'amortised')
            )
            assert amortised == pytest.approx((9 * unmeasured + measured) / 10)
    for row in found.values():
        for clock in ('clock', 'cpu_time'):
            value, error = row[clock]['found'], row[clock]['uncertainty']
            if row[clock]['met'] is None:
                assert abs(value - row['target']) < error
            else:
                assert row[clock]['met'] == (value <= row['target'])
    met = [row['met'] for row in result['memory_targets']]
    assert met == ([True, True] if common.storages_tell() else [])


@pytest.fixture(scope='module')
def scaling(tmp_path_factory):
    out = tmp_path_factory.mktemp('scaling')
    printed = run(
        'scaling.py',
        '--quick',
        '--rounds',
        2,
        '--warmup',
        1,
        '--ranks',
        2,
        '--out',
        out,
    )
    return printed, json.loads((out / 'scaling.json').read_text()), out


def test_scaling_measures_each_point(scaling):
    printed, result, out = scaling
    assert (out / 'scaling.md').read_text() in printed
    assert [(p['sweep'], p['ranks']) for p in result['points']] == [
        ('ranks', 1),
        ('modules', 2),
    ]
    for point in result['points']:
        layers = point['modules'] * point['layers']
        assert point['parameters'] == layers * (point['width'] + 1) * point['width']
        rows = cells(point['variants'])
        assert_times(rows, rounds=2)
        gradient = FLOAT32 * point['parameters'] * (point['ranks'] > 1)
        for (variant, measured), row in rows.items():
            factor = 2 if measured and variant == 'halves' else 1
            columns = {'halves': 3, 'replicas': 2}.get(variant, 0) * measured
            assert row['bytes_reduced'] == dict(
                gradients=factor * gradient,
                statistics=FLOAT32 * columns * point['modules'] * (point['ranks'] > 1),
            )


def test_scaling_computes_large_machines_by_hand(scaling):
    printed, result, _ = scaling
    assert 'computed, not measured' in printed
    rows = {(row['link'], row['gpus']): row for row in result['computed']}
    assert len(rows) == 1 + 3 * 4
    bytes_ = result['gradient_bytes']
    assert bytes_ == 166_110_848
    row = rows['InfiniBand NDR, 400 Gb/s', 640]
    # 2 x 639/640 x 166,110,848 bytes at 50 GB/s; 10 levels up and down at 5 us.
    wire, scalars = 0.0066340519, 1e-4
    assert row['plain_seconds'] == pytest.approx(wire, rel=1e-7)
    assert row['replicas_extra_seconds'] == pytest.approx(scalars)
    assert row['halves_extra_seconds'] == pytest.approx(wire + scalars, rel=1e-7)
    assert row['halves_extra_per_update']['10'] == pytest.approx((wire + scalars) / 10)
