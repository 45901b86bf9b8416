"""plot_accuracy.py from the command line."""

from pathlib import Path

import pytest
from logfiles import write_timed_run
from scripts import run_script

pytestmark = pytest.mark.evidence

SCRIPT = '../benchmarks/plot_accuracy.py'


def test_pictures_are_written(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = [tmp_path / 'pictures' / name for name in ('a.png', 'a.svg')]
    arguments = ['--work-dirs', tmp_path, '--only', 'panoptic', '--out', *out]
    assert run_script(SCRIPT, *arguments) == 0
    assert capsys.readouterr().out.split() == list(map(str, out))
    assert out[0].read_bytes().startswith(b'\x89PNG')
    assert '<svg' in out[1].read_text()


def test_wrong_arguments_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture):
    run = write_timed_run(tmp_path / 'my run', 'mIoU', 30.0)
    for arguments, message in (
        ([run], 'my run is not named as a config'),
        (['--only', 'yolo', '--work-dirs', tmp_path], 'nothing to draw'),
        ([tmp_path / 'sem-fpn_r18_w16_sgd_b256_9iters_digits'], 'no validation'),
    ):
        assert run_script(SCRIPT, *arguments) == 2
        assert message in ' '.join(capsys.readouterr().err.split())
