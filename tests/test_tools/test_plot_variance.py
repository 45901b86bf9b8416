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


def test_unknown_format_is_rejected(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert run_script(SCRIPT, run, '--out', tmp_path / 'variance.foo') == 2
    assert "'foo' is not supported" in capsys.readouterr().err


def test_folder_that_is_no_run_is_rejected(capsys: pytest.CaptureFixture):
    assert run_script(SCRIPT, 'nowhere') == 2
    assert 'nowhere has no */vis_data/scalars.json' in capsys.readouterr().err
