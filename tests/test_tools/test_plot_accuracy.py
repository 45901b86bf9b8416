"""Accuracy against batch size: what is collected, and that the figure shows it."""

import json
import sys
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
matplotlib.use('agg')

from analysis import plot_accuracy  # noqa: E402

PAPER = json.loads((ROOT / 'configs/paper_results.json').read_text())['tables']


def write_run(folder, metric, value, *, loss=1.0, seconds=36.0):
    """The log of 10 updates of so many seconds each, with one validation."""
    log = folder / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    rows = [
        {'step': step, 'lr': 0.1, 'loss': loss, 'time': seconds} for step in (5, 10)
    ]
    rows.append({metric: value, 'step': 1})
    log.write_text('\n'.join(map(json.dumps, rows)))
    return folder


def lines(axes):
    """Coordinates of the lines of a panel by their id."""
    return {
        line.get_gid(): [list(line.get_xdata()), list(line.get_ydata())]
        for line in axes.lines
    }


def test_time_of_a_run(tmp_path):
    folder = write_run(tmp_path / 'run', 'mIoU', 30.0)
    assert plot_accuracy.training_hours(folder) == pytest.approx(0.1)
    assert plot_accuracy.training_hours(tmp_path / 'none') is None
    assert plot_accuracy.paper_hours('768 A100 x 2 images, 4.2 minutes') == 0.07
    assert plot_accuracy.paper_hours('73 h; 53.8 segm mAP') == 73
    assert plot_accuracy.paper_hours(None) is None


def test_every_number_of_the_paper_is_a_point(tmp_path):
    points = plot_accuracy.table_points(tmp_path)
    values = [
        value
        for table in PAPER.values()
        for row in table['rows']
        for value in row['values']
        if value is not None
    ]
    assert [point.value for point in points] == values
    assert all(point.from_paper for point in points)
    assert {point.method for point in points} == set(plot_accuracy.STYLES)
    assert {point.metric for point in points} == set(plot_accuracy.METRIC_NAMES)
    timed = {(p.panel, p.method, p.batch_size): p.hours for p in points if p.hours}
    assert sorted(timed.values()) == [0.07, 3.5, 73]
    ((_, method, batch),) = (key for key in timed if timed[key] == 3.5)
    assert (method, batch) == ('agvm-adamw', 960)


def test_measured_in_front_of_the_paper(tmp_path):
    name = 'retinanet_r18_fpn_agvm-adamw_b4096_12e_coco'
    write_run(tmp_path / name, 'coco/bbox_mAP', 0.2)
    points = plot_accuracy.table_points(tmp_path)
    (measured,) = (point for point in points if not point.from_paper)
    assert (measured.batch_size, measured.value) == (4096, 20.0)

    points = [point for point in points if point.panel == measured.panel]
    figure = plot_accuracy.plot_accuracy(points)
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


def test_the_mean_of_several_seeds_and_their_range(tmp_path):
    folders = [
        write_run(
            tmp_path / f'seed{seed}' / f'faster-rcnn_r18_fpn_sgd_b{batch}_6e_digits',
            'coco/bbox_mAP',
            value,
            seconds=36.0 * (seed + 1),
        )
        for seed, batch, value in ((0, 256, 0.4), (1, 256, 0.5), (0, 64, 0.6))
    ]
    accuracy, time = plot_accuracy.plot_accuracy(
        plot_accuracy.folder_points(folders)
    ).axes
    assert lines(accuracy) == {
        'measured sgd': [[64, 256], [60.0, 45.0]],
        'range sgd': [[256, 256], [40.0, 50.0]],
    }
    assert lines(time)['measured sgd'] == [[64, 256], [pytest.approx(6), 9.0]]


def test_work_folders_tell_what_they_are(tmp_path):
    folders = [
        write_run(
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
    points = plot_accuracy.folder_points(folders)
    assert [(p.method, p.batch_size, p.metric, p.value) for p in points] == [
        ('sgd', 32, 'segm_mAP', 50.0),
        ('sgd', 256, 'segm_mAP', 'NaN'),
        ('agvm-sgd', 256, 'segm_mAP', 45.0),
    ]
    assert {point.panel for point in points} == {'Mask R-CNN, digits'}
    accuracy, _ = plot_accuracy.plot_accuracy(points).axes
    drawn = lines(accuracy)
    assert drawn['measured sgd'] == [[32], [50.0]]
    assert drawn['diverged'][0] == [256]


def test_methods_can_be_told_apart_without_colour():
    looks = [style[2:] for style in plot_accuracy.STYLES.values()]
    assert len(set(looks)) == len(looks)


def test_every_config_of_a_run_is_understood():
    """A folder that is named as any of our configs."""
    for path in (ROOT / 'configs').glob('[!_]*/*.py'):
        parts = plot_accuracy.NAME.fullmatch(path.stem)
        assert parts, path.stem
        # one of the methods, or one that only the digits compare
        assert parts['method'] in plot_accuracy.STYLES or path.parent.name == 'digits'


def test_mistakes_are_said(tmp_path, capsys):
    run = write_run(tmp_path / 'my run', 'mIoU', 30.0)
    for arguments, message in (
        ([str(run)], 'my run is not named as a config'),
        (['--only', 'yolo', '--work-dirs', str(tmp_path)], 'nothing to draw'),
        ([str(tmp_path / 'sem-fpn_r18_w16_sgd_b256_9iters_digits')], 'no validation'),
    ):
        with pytest.raises(SystemExit):
            plot_accuracy.main(arguments)
        assert message in ' '.join(capsys.readouterr().err.split())


def test_command_line(tmp_path, capsys):
    out = [str(tmp_path / 'pictures' / name) for name in ('a.png', 'a.svg')]
    arguments = ['--work-dirs', str(tmp_path), '--only', 'panoptic', '--out', *out]
    plot_accuracy.main(arguments)
    assert capsys.readouterr().out.split() == out
    assert Path(out[0]).read_bytes().startswith(b'\x89PNG')
    assert '<svg' in Path(out[1]).read_text()
