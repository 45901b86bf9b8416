"""Structure and exact figures of the benchmarks with their smallest settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import accuracy
import layouts
import noise_scale
import normalizers
import overhead
import pytest
import scaling
import sharding
import waiting
from common.memory import CAN_FOLLOW_STORAGES
from common.report import RESULTS

from agvm_mm.estimators.preconditioner import CPU_PIECE
from gpu_check import command

pytestmark = pytest.mark.evidence

ROOT = Path(__file__).parents[2]
FLOAT32 = 4

Printed = tuple[str, dict, Path]
"""What a benchmark prints, its result, and the folder that it writes to."""


def run(script: str, out: Path, name: str, arguments: str) -> Printed:
    """Run a benchmark from the repository root as a user would."""
    done = subprocess.run(
        [sys.executable, f'benchmarks/{script}', *arguments.split(), '--out', out],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((out / f'{name}.json').read_text()), out


def cells(variants: list[dict]) -> dict[tuple[str, bool], dict]:
    return {(row['variant'], row['measured']): row for row in variants}


def assert_times(rows: dict[tuple[str, bool], dict], rounds: int) -> None:
    for row in rows.values():
        assert len(row['seconds_by_round']) == rounds
        for name in ('seconds', 'ratio', 'cpu_ratio'):
            found = row[name]
            assert 0 < found['quartile_1'] <= found['median'] <= found['quartile_3']


def check_report(path: Path):
    scripts = dict(
        accuracy=accuracy,
        gpu=command,
        layouts=layouts,
        noise=noise_scale,
        overhead=overhead,
        scaling=scaling,
        sharding=sharding,
        waiting=waiting,
    )
    script = scripts[path.stem.split('_')[0]]
    report = script.describe(json.loads(path.read_text()))
    assert report + '\n' == path.with_suffix('.md').read_text()


def test_checked_in_report_is_rendered_from_its_result(subtests):
    for path in sorted(RESULTS.glob('*.json')):
        with subtests.test(path=path):
            check_report(path)


def test_sharding_divides_what_it_says(tmp_path: Path):
    printed, result, _ = run(
        'sharding.py',
        tmp_path,
        'sharding_digits_adamw',
        '--model digits --ranks 2 --rounds 1 --warmup 0 --image-size 64',
    )
    rows = {row['engine']: row for row in result['rows']}
    keys = ('parameters', 'gradients', 'moments')
    found = {engine: [row[key] for key in keys] for engine, row in rows.items()}
    assert found['ddp'] == [1, 1, 2]
    # A rank has whole tensors, or a part of the rows of each.
    assert found['zero'] == pytest.approx([1, 1, 1], abs=0.02)
    assert found['fsdp'] == pytest.approx([0.5, 0.5, 1], abs=0.02)
    assert {engine: row['state'] for engine, row in rows.items()} == pytest.approx(
        dict(ddp=4, zero=3, fsdp=2)
    )
    assert all(row['peak'] > row['before'] > 0 for row in rows.values())
    assert printed.count('| FSDP2 ') == 1


@pytest.fixture(scope='module')
def overhead_run(tmp_path_factory: pytest.TempPathFactory) -> Printed:
    return run(
        'overhead.py',
        tmp_path_factory.mktemp('overhead'),
        'overhead_digits_sgd',
        '--model digits --rounds 2 --warmup 1 --images 1 --image-size 64',
    )


def test_overhead_compares_all_variants(overhead_run: Printed):
    _, result, _ = overhead_run
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


def test_overhead_counts_reduced_bytes(overhead_run: Printed):
    _, result, _ = overhead_run
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
    not CAN_FOLLOW_STORAGES, reason='this torch does not report when memory is freed'
)
def test_overhead_follows_memory_of_estimators(overhead_run: Printed):
    _, result, _ = overhead_run
    rows = cells(result['variants'])
    halves, replicas = (rows[v, True]['memory'] for v in ('halves', 'replicas'))
    for memory in (halves, replicas):
        assert memory['left_over'] == 0
        largest = max(result['buckets'])
        assert largest <= memory['in_flight'] <= result['gradient_bytes']
    # Halves: a copy of each bucket in flight, and scalars. Replicas: scalars. Both also
    # copy pieces of parameters that begin at an odd place, up to four at a time.
    scratch = 4 * FLOAT32 * CPU_PIECE + 10_000
    assert max(result['buckets']) <= halves['own'] <= halves['in_flight'] + scratch
    assert 0 < replicas['own'] <= scratch


def test_overhead_prints_and_writes_its_tables(overhead_run: Printed):
    printed, result, out = overhead_run
    report = (out / 'overhead_digits_sgd.md').read_text()
    assert report in printed
    assert report.count('| halves ') == 2 + 3 + CAN_FOLLOW_STORAGES
    assert ('Memory: not measured' in report) != CAN_FOLLOW_STORAGES
    met = [row['met'] for row in result['memory_targets']]
    assert met == ([True, True] if CAN_FOLLOW_STORAGES else [])


def test_overhead_compares_targets_with_both_clocks(overhead_run: Printed):
    _, result, _ = overhead_run
    found = {(t['variant'], t['quantity']): t for t in result['targets']}
    assert list(found) == [
        (variant, f'ratio, {updates}')
        for updates in ('unmeasured', 'measured', 'amortized')
        for variant in ('halves', 'replicas')
    ]
    for clock in ('clock', 'cpu_time'):
        for variant in ('halves', 'replicas'):
            unmeasured, measured, amortized = (
                found[variant, f'ratio, {updates}'][clock]['found']
                for updates in ('unmeasured', 'measured', 'amortized')
            )
            assert amortized == pytest.approx((9 * unmeasured + measured) / 10)
        for row in found.values():
            value, error = row[clock]['found'], row[clock]['uncertainty']
            if row[clock]['met'] is None:
                assert abs(value - row['target']) < error
            else:
                assert row[clock]['met'] == (value <= row['target'])


@pytest.fixture(scope='module')
def scaling_run(tmp_path_factory: pytest.TempPathFactory) -> Printed:
    return run(
        'scaling.py',
        tmp_path_factory.mktemp('scaling'),
        'scaling',
        '--quick --rounds 2 --warmup 1 --ranks 2',
    )


def test_scaling_measures_each_point(scaling_run: Printed):
    printed, result, out = scaling_run
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


def test_layouts_differ_in_micro_batches_only(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, 'UPDATES', 1)
    monkeypatch.setattr(layouts, 'CELLS', [(32, 'micro_batch'), (1, 'update')])
    cells = [layouts.run_config(*cell, 0) for cell in layouts.CELLS]
    different = {key for key in cells[0] if cells[0][key] != cells[1][key]}
    assert different == {'train_cfg', 'train_dataloader'}
    assert [cfg.train_dataloader.batch_size for cfg in cells] == [32, 1]
    folders = ['--out', str(tmp_path), '--work-dirs', str(tmp_path / 'runs')]
    layouts.main(['--seeds', '2', *folders])
    result = json.loads((tmp_path / 'layouts.json').read_text())
    one, parts = result['rows']
    assert (one['layout'], parts['layout']) == ('1 x 32', '32 x 1')
    assert len(one['mAP']) == len(parts['mAP']) == 2


def test_settings_of_normalizers_are_timed(capsys):
    normalizers.main(['--rounds', '1', '--micro-batches', '2'])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith('|') and '(' in line]
    assert [row.split()[1] for row in rows] == list(normalizers.TWINS)


def test_saves_and_resumes_are_timed_in_turns(tmp_path):
    counts = ['--rounds', '2', '--state', '2', '--updates', '3']
    waiting.main([*counts, '--out', str(tmp_path)])
    result = json.loads((tmp_path / 'waiting.json').read_text())
    assert {len(found) for found in result['saves'].values()} == {2}
    assert {len(found) for found in result['starts'].values()} == {2}
