"""Accuracy against batch size: the points that are collected, and their figure."""

import json
from pathlib import Path

import pytest
from logfiles import write_timed_run
from matplotlib.axes import Axes

from benchmarks.paper.accuracy_figure import METHOD_STYLES, METRIC_NAMES, plot_accuracy
from benchmarks.paper.points import folder_points, paper_hours, table_points
from benchmarks.paper.tables import METHODS

pytestmark = pytest.mark.evidence

ROOT = Path(__file__).parents[2]
PAPER = json.loads((ROOT / 'configs/paper_results.json').read_text())['tables']


def lines(axes: Axes) -> dict[str, list[list]]:
    """Return the coordinates of the lines of a panel by their id."""
    return {
        line.get_gid(): [list(line.get_xdata()), list(line.get_ydata())]
        for line in axes.lines
    }


def test_hours_in_notes_of_the_paper():
    assert paper_hours('768 A100 x 2 images, 4.2 minutes') == 0.07
    assert paper_hours('73 h; 53.8 segm mAP') == 73
    assert paper_hours(None) is None


def test_every_number_of_the_paper_is_a_point(tmp_path: Path):
    points = table_points(tmp_path)
    values = [
        value
        for table in PAPER.values()
        for row in table['rows']
        for value in row['values']
        if value is not None
    ]
    assert [point.value for point in points] == values
    assert all(point.from_paper for point in points)
    assert {point.method for point in points} == set(METHOD_STYLES)
    assert {point.metric for point in points} == set(METRIC_NAMES)
    timed = {(p.panel, p.method, p.batch_size): p.hours for p in points if p.hours}
    assert sorted(timed.values()) == [0.07, 3.5, 73]
    ((_, method, batch),) = (key for key in timed if timed[key] == 3.5)
    assert (method, batch) == ('agvm-adamw', 960)


def test_measured_runs_are_in_front_of_the_paper(tmp_path: Path):
    name = 'retinanet_r18_fpn_agvm-adamw_b4096_12e_coco'
    write_timed_run(tmp_path / name, 'coco/bbox_mAP', 0.2)
    points = table_points(tmp_path)
    (measured,) = (point for point in points if not point.from_paper)
    assert (measured.batch_size, measured.value) == (4096, 20.0)

    points = [point for point in points if point.panel == measured.panel]
    figure = plot_accuracy(points)
    accuracy, time = figure.axes
    drawn = lines(accuracy)
    assert drawn['paper agvm-adamw'] == [[32, 4096, 10240], [32.8, 28.7, 26.7]]
    assert drawn['paper pmd-lamb'] == [[32, 4096], [31.4, 23.5]]
    assert drawn['measured agvm-adamw'] == [[4096], [20.0]]
    assert drawn['diverged'][0] == [10240]  # PMD-LAMB at 10k
    behind, front = (
        next(line for line in accuracy.lines if line.get_gid() == gid)
        for gid in ('paper agvm-adamw', 'measured agvm-adamw')
    )
    assert behind.get_zorder() < front.get_zorder()
    assert behind.get_alpha() < 1 and front.get_alpha() == 1
    assert lines(time) == {'measured agvm-adamw': [[4096], [pytest.approx(6)]]}
    assert time.get_ylabel() == 'training time (minutes)'
    labels = [tick.get_text() for tick in accuracy.get_xticklabels()]
    assert labels == ['32', '4k', '10k']
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        'AGVM + AdamW',
        'PMD-LAMB',
        'the paper',
        'measured',
        'diverged',
    ]


def test_seeds_are_drawn_as_mean_and_range(tmp_path: Path):
    folders = [
        write_timed_run(
            tmp_path / f'seed{seed}' / f'faster-rcnn_r18_fpn_sgd_b{batch}_6e_digits',
            'coco/bbox_mAP',
            value,
            seconds=36.0 * (seed + 1),
        )
        for seed, batch, value in ((0, 256, 0.4), (1, 256, 0.5), (0, 64, 0.6))
    ]
    accuracy, time = plot_accuracy(folder_points(folders)).axes
    assert lines(accuracy) == {
        'measured sgd': [[64, 256], [60.0, 45.0]],
        'range sgd': [[256, 256], [40.0, 50.0]],
    }
    assert lines(time)['measured sgd'] == [[64, 256], [pytest.approx(6), 9.0]]


def test_names_of_work_folders_give_method_and_batch_size(tmp_path: Path):
    folders = [
        write_timed_run(
            tmp_path / f'mask-rcnn_r18_w16_fpn_{method}_b{batch}_6e_digits',
            'coco/segm_mAP',
            value,
            loss=loss,
        )
        for method, batch, value, loss in (
            ('sgd', 32, 0.5, 1.0),
            ('sgd', 256, 0.4, float('nan')),
            ('agvm-sgd', 256, 0.45, 1.0),
        )
    ]
    points = folder_points(folders)
    assert [(p.method, p.batch_size, p.metric, p.value) for p in points] == [
        ('sgd', 32, 'segm_mAP', 50.0),
        ('sgd', 256, 'segm_mAP', 'NaN'),
        ('agvm-sgd', 256, 'segm_mAP', 45.0),
    ]
    assert {point.panel for point in points} == {'Mask R-CNN, digits'}
    accuracy, _ = plot_accuracy(points).axes
    drawn = lines(accuracy)
    assert drawn['measured sgd'] == [[32], [50.0]]
    assert drawn['diverged'][0] == [256]


def test_methods_differ_without_color():
    looks = [style[2:] for style in METHOD_STYLES.values()]
    assert len(set(looks)) == len(looks)


def test_every_method_has_a_style():
    assert set(METHODS) == set(METHOD_STYLES) - {'sam'}
