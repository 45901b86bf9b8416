"""Settings, summary and report of accuracy.py; training is replaced by a log."""

import json
import math
import shlex
from pathlib import Path

import accuracy
import pytest
from mmengine.config import Config

from agvm_mm import cli
from agvm_mm.analysis.paper import Cell

ROOT = Path(__file__).parents[2]
SGD = 'configs/digits/faster-rcnn_r18_w16_fpn_sgd_b256_10e_digits.py'
AGVM = 'configs/digits/faster-rcnn_r18_w16_fpn_agvm-sgd_b256_10e_digits.py'


def trained_config(run: accuracy.Run) -> Config:
    """Return the config that a run's command trains."""
    words = shlex.split(run.cell('bbox_mAP', 2).command)
    assert words[:3] == ['tools/dist_train.sh', run.config, '2']
    options = dict(
        word.split('=') for word in words[words.index('--cfg-options') + 1 :]
    )
    values = {key: float(value) for key, value in options.items()}
    return cli.load_config(str(ROOT / run.config), values)


@pytest.mark.parametrize(
    'batch_size, lr_grows_to, lr',
    [(64, 256, 0.02), (256, 256, 0.04), (1024, 256, 0.04), (1024, 2048, 0.08)],
)
def test_schedules_stay_at_same_epochs(batch_size: int, lr_grows_to: int, lr: float):
    cfg = trained_config(accuracy.Run(AGVM, 'agvm-sgd', batch_size, 3, lr_grows_to))
    epoch = math.ceil(4096 / batch_size)
    assert cfg.train_cfg.total_batch_size == batch_size
    assert cfg.randomness.seed == 3
    # As in the config: a warm-up of 3 epochs, AGVM after 4.
    assert cfg.param_scheduler[0].end == 3 * epoch
    assert cfg.default_hooks.agvm.begin == 4 * epoch
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(lr)


def test_batch_256_trains_unchanged_config():
    for config, method in ((SGD, 'sgd'), (AGVM, 'agvm-sgd')):
        run = accuracy.Run(config, method, 256, 0, 256)
        original = cli.load_config(str(ROOT / config))
        assert trained_config(run).to_dict() == original.to_dict()
        assert run.name == Path(config).stem
        assert accuracy.find_config('faster-rcnn', method) == config
    with pytest.raises(ValueError, match='0 configs match'):
        accuracy.find_config('faster-rcnn', 'lars')


def test_summary_shows_mean_range_and_divergence():
    def result(method: str, batch_size: int, value: float | str) -> dict:
        return dict(method=method, batch_size=batch_size, value=value)

    rows = accuracy.summarize(
        [
            result('sgd', 64, 50.0),
            result('sgd', 64, 53.0),
            result('sgd', 256, 'NaN'),
            result('sgd', 256, 40.0),
            result('lamb', 256, 'NaN'),
        ]
    )
    assert [accuracy.show(row) for row in rows] == [
        '51.5 (50.0 to 53.0)',
        '40.0, 1 of 2 diverged',
        'diverged',
    ]


def test_every_run_is_trained_once_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    values = iter([0.5, 0.6, 0.4, 0.7])
    calls = []

    def run_cell(cell: Cell, root: Path) -> None:
        folder = accuracy.paper.work_dir(cell, root)
        calls.append(folder.relative_to(tmp_path).as_posix())
        log = folder / '20260101_000000/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        rows = [
            {'step': 10, 'lr': 0.1, 'loss': 1.0, 'time': 6.0},
            {'step': 1, 'coco/bbox_mAP': next(values)},
        ]
        log.write_text('\n'.join(map(json.dumps, rows)))

    monkeypatch.setattr(accuracy.paper, 'run_cell', run_cell)
    accuracy.main(
        ['--batch-sizes', '64', '--seeds', '0', '1', '--out', str(tmp_path / 'out')]
        + ['--work-dirs', str(tmp_path)]
    )
    stem = 'faster-rcnn_r18_w16_fpn_{}_b64_10e_digits'
    assert calls == [
        f'seed{seed}_lr256/{stem.format(method)}'
        for seed in (0, 1)
        for method in ('sgd', 'agvm-sgd')
    ]
    printed = capsys.readouterr().out
    # The values in the logs: 50 and 40, 60 and 70.
    assert '| sgd      | 45.0 (40.0 to 50.0) |' in printed
    assert '| agvm-sgd | 65.0 (60.0 to 70.0) |' in printed
    out = json.loads((tmp_path / 'out/accuracy_faster-rcnn.json').read_text())
    assert [run['value'] for run in out['runs']] == [50.0, 60.0, 40.0, 70.0]
    assert out['runs'][0]['hours'] == pytest.approx(60 / 3600)
    assert (tmp_path / 'out/accuracy_faster-rcnn.png').stat().st_size > 0


def test_batch_size_below_one_is_rejected():
    with pytest.raises(ValueError, match='--batch-sizes must be at least 1'):
        accuracy.main(['--batch-sizes', '0'])
