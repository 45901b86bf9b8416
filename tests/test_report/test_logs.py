"""The reader of JSON logs, on logs written here."""

import math
import os
from pathlib import Path

import pytest
from logfiles import write_aged_log, write_log

from agvm_mm.report import logs
from benchmarks.paper.tables import last_result

RECORDS = [
    {'step': 1, 'lr': 0.1, 'loss': 3.0},
    {'step': 2, 'lr': 0.1, 'agvm/phi_backbone': 0.5, 'agvm/mu_backbone': 1.0}
    | {'agvm/phi_head': 0.1, 'agvm/mu_head': 1.2},
    {'step': 2, 'coco/bbox_mAP': 0.4},
    {'step': 3, 'lr': 0.01, 'agvm/phi_backbone': 0.6, 'agvm/mu_backbone': 1.0}
    | {'agvm/phi_head': 0.2, 'agvm/mu_head': 1.3},
]


def test_curves_and_learning_rate_steps_are_read(tmp_path: Path):
    write_log(tmp_path / 'run', *RECORDS)
    records = logs.read_scalars(logs.find_logs(tmp_path / 'run')[-1])
    assert records == RECORDS
    assert logs.module_curves(records, logs.PHI_KEY) == {
        'backbone': ([2, 3], [0.5, 0.6]),
        'head': ([2, 3], [0.1, 0.2]),
    }
    assert logs.lr_drops(records) == [2]


def test_latest_log_of_a_folder_is_found(tmp_path: Path):
    first = write_log(tmp_path, {'step': 1, 'lr': 0.1}, {'step': 2, 'lr': 0.1})
    other = write_log(tmp_path, {'step': 3, 'lr': 0.1}, name='20260102_000000')
    # A copy may be written in any order.
    for age in (0, 2**32):
        os.utime(other, (age, age))
        assert logs.find_logs(tmp_path) == [first, other]
        assert [record['step'] for record in logs.read_run(tmp_path)] == [1, 2, 3]
    assert logs.find_logs(other) == [other]


def test_folder_without_log_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match='scalars.json'):
        logs.find_logs(tmp_path)


def test_runs_in_a_common_folder_are_not_joined(tmp_path: Path):
    write_aged_log(tmp_path / 'one', 1, [2, 4, 6])
    write_aged_log(tmp_path / 'other', 2, [2, 4])
    write_aged_log(tmp_path / 'one', 3, [8, 10])  # resumed
    with pytest.raises(FileNotFoundError, match='folder of a run'):
        logs.read_run(tmp_path)
    assert [each['age'] for each in logs.read_run(tmp_path / 'one')] == [1] * 3 + [
        3
    ] * 2


def test_log_of_resumed_run_is_joined(tmp_path: Path):
    write_aged_log(tmp_path, 1, range(2, 11, 2))
    write_aged_log(tmp_path, 2, [8, 10, 12])  # resumed after update 6
    write_aged_log(tmp_path, 3, [])  # killed before it trained
    records = logs.read_run(tmp_path)
    assert [(record['step'], record['age']) for record in records] == [
        (2, 1),
        (4, 1),
        (6, 1),
        (8, 2),
        (10, 2),
        (12, 2),
    ]
    write_aged_log(tmp_path, 4, [2, 4])  # started again
    assert [record['age'] for record in logs.read_run(tmp_path)] == [4, 4]
    log = tmp_path / '2/vis_data/scalars.json'
    assert [record['age'] for record in logs.read_run(log)] == [2, 2, 2]
    # Started again, with one line so far or one at the end of the epoch.
    for age, steps in (5, [2]), (6, [2, 3, 5]):
        newest = write_aged_log(tmp_path, age, steps)
        assert logs.run_logs(tmp_path) == [newest]


def test_last_result_is_nan_after_divergence_and_none_without_validation(
    tmp_path: Path,
):
    good = {'loss': 2.0, 'lr': 0.1, 'step': 1}
    bad = {'loss': math.nan, 'lr': 0.1, 'step': 1}
    write_log(tmp_path / 'good', {'mAP': 0.1}, good, {'mAP': 0.3, 'step': 2}, good)
    write_log(tmp_path / 'diverged', {'mAP': 0.1}, good, bad)
    write_log(tmp_path / 'recovered', bad, good, {'mAP': 0.2})
    write_log(tmp_path / 'short', good)
    assert last_result(tmp_path / 'good', 'mAP') == 0.3
    assert math.isnan(last_result(tmp_path / 'diverged', 'mAP'))
    assert last_result(tmp_path / 'recovered', 'mAP') == 0.2
    assert last_result(tmp_path / 'good', 'mIoU') is None
    assert last_result(tmp_path / 'short', 'mAP') is None
    assert last_result(tmp_path / 'nothing', 'mAP') is None


def test_last_result_is_0_if_nothing_was_found_at_the_last_validation(tmp_path: Path):
    times = {'data_time': 0.1, 'time': 0.2, 'step': 10}
    train = {'loss': 0.5, 'lr': 0.1, 'time': 0.2, 'step': 5}
    write_log(tmp_path / 'lost', {'mAP': 0.3, 'step': 5}, train, times, {'own': 1.0})
    assert last_result(tmp_path / 'lost', 'mAP') == 0
    write_log(tmp_path / 'other', {'mAP': 0.3, 'step': 5}, {**times, 'mIoU': 30.0})
    assert last_result(tmp_path / 'other', 'mAP') is None


def test_last_result_is_that_of_the_latest_log(tmp_path: Path):
    first = write_log(tmp_path, {'mAP': 0.1})
    write_log(tmp_path, {'mAP': 0.2}, name='20260102_000000')
    os.utime(first, (0, 0))
    assert last_result(tmp_path, 'mAP') == 0.2


def test_noise_scale_that_is_not_resolved_is_a_gap():
    records = [
        {'step': 1, 'lr': 0.1},
        {'step': 2, 'agvm/phi_head': 0.5, 'agvm/noise_scale_all': 9.0},
        {'step': 4, 'agvm/phi_head': 0.4, 'agvm/noise_scale_head': 7.0},
        {'step': 4, 'agvm/rejected': 1},
    ]
    curves = logs.module_curves(records, logs.NOISE_KEY)
    assert curves.keys() == {'head', 'all'}
    assert curves['head'] == ([2, 4], pytest.approx([math.nan, 7], nan_ok=True))
    assert curves['all'] == ([2, 4], pytest.approx([9, math.nan], nan_ok=True))
    assert logs.module_curves(records, logs.MU_KEY) == {}


def test_total_batch_is_that_of_full_updates():
    def epoch(number: int, *sizes: int) -> list[logs.Record]:
        return [{'epoch': number, 'batch_size': size} for size in sizes]

    assert logs.total_batch(epoch(1, 64, 64, 24) + epoch(2, 64)) == 64
    # Only the last updates of epochs, which may be smaller.
    assert logs.total_batch(epoch(1, 24) + epoch(2, 24)) is None
    assert logs.total_batch([{'step': 1, 'batch_size': 64}]) == 64  # No epochs.
    assert logs.total_batch([{'step': 1, 'epoch': 1}]) is None


def test_line_that_is_not_json_is_named(tmp_path: Path):
    log = write_log(tmp_path, {'step': 1})
    whole = log.read_text()
    for end in '\n', '\n{"step": 2}':
        log.write_text(f'{whole}\n{{"step": {end}')
        with pytest.raises(ValueError, match=r'scalars.json, line 2 is not JSON: '):
            logs.read_scalars(log)
    log.write_text(f'{whole}\n{{"step": ')  # The run was killed.
    with pytest.warns(UserWarning, match='line 2 is not JSON: .*; left out'):
        assert logs.read_scalars(log) == [{'step': 1}]
    log.write_text('{"mode": "train", "iter": 50, "lr": 0.1}')  # Of MMDetection 2.
    with pytest.raises(ValueError, match="scalars.json has records without 'step'"):
        logs.read_scalars(log)
