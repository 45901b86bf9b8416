"""plot_variance.py from the command line."""

import subprocess
import sys
from pathlib import Path

import pytest
from logfiles import write_log
from scripts import ROOT, run_script

SCRIPT = 'analysis/plot_variance.py'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    values = {'agvm/phi_backbone': 0.5, 'agvm/mu_backbone': 1.0}
    records = [{'step': step, 'lr': 0.1} | values for step in (2, 4)]
    write_log(tmp_path / 'run', *records)
    return tmp_path / 'run'


def test_pictures_are_written(run: Path, tmp_path: Path):
    png, svg = (tmp_path / 'new' / f'variance.{kind}' for kind in ('png', 'svg'))
    command = [sys.executable, ROOT / 'tools' / SCRIPT, run, '--out', png, svg]
    subprocess.run(command, check=True)
    assert png.read_bytes().startswith(b'\x89PNG')
    assert '<svg' in svg.read_text()


def test_batch_that_a_log_does_not_tell_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    values = {'agvm/phi_head': 0.5, 'agvm/noise_scale_head': 9.0}
    for name, batch in (('with', {'batch_size': 8}), ('without', {})):
        write_log(tmp_path / name, {'step': 2, 'lr': 0.1} | values | batch)
    out = tmp_path / 'variance.png'
    runs = tmp_path / 'with', tmp_path / 'without'
    assert run_script(SCRIPT, *runs, '--out', out) == 0
    assert capsys.readouterr().out.splitlines() == [
        'without: no line at the total batch, which its log does not contain',
        str(out),
    ]


def test_unknown_format_is_rejected(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert run_script(SCRIPT, run, '--out', tmp_path / 'variance.foo') == 2
    assert "'foo' is not supported" in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['nowhere'], 'nowhere has no vis_data/scalars.json'),
        (['a', 'a'], 'runs with the same name: a, a; give --names'),
        (['a', 'b', '--names', 'x'], '2 runs, but 1 --names'),
        (['a', '--window', '0'], 'argument --window: must be at least 1, got 0'),
    ],
)
def test_wrong_arguments_are_rejected(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
):
    assert run_script(SCRIPT, *arguments) == 2
    assert message in capsys.readouterr().err
