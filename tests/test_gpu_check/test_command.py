"""The GPU check as a whole on CPU ranks, its plan, report and requirements."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpu_check import __main__, command, cost, environment, training
from gpu_check.__main__ import main
from gpu_check.command import Outcome
from gpu_check.ranks import Ranks

pytestmark = pytest.mark.evidence

ROOT = Path(__file__).parents[2]
SETTINGS = dict(model='digits', shape=(64, 96), images=1, rounds=2, warmup=1)


@pytest.mark.parametrize(
    'gpus, expected',
    [
        (
            1,
            [
                ('golden case', '4 x gloo, 1 GPU(s)'),
                ('float64 parity', '2 x gloo, 1 GPU(s)'),
                ('ZeRO-1 and FSDP2', '2 x gloo, 1 GPU(s)'),
                ('float16 training', '1 x NCCL'),
                ('bfloat16 training', '1 x NCCL'),
                ('host waits', '1 x NCCL'),
                ('host waits', '2 x gloo, 1 GPU(s)'),
                ('cost', '1 x NCCL'),
            ],
        ),
        (
            8,
            [
                ('golden case', '4 x NCCL'),
                ('float64 parity', '8 x NCCL'),
                ('ZeRO-1 and FSDP2', '8 x NCCL'),
                ('float16 training', '8 x NCCL'),
                ('bfloat16 training', '8 x NCCL'),
                ('host waits', '8 x NCCL'),
                ('cost', '8 x NCCL'),
            ],
        ),
    ],
)
def test_plan_uses_every_gpu(gpus, expected):
    assert [(name, str(ranks)) for name, ranks, _ in command.plan(gpus)] == expected


def test_two_gpus_share_the_four_ranks_of_the_golden_case():
    assert str(command.plan(2)[0][1]) == '4 x gloo, 2 GPU(s)'


@pytest.fixture(scope='module')
def checked(tmp_path_factory):
    """Run the check on CPU ranks, without training; return status, result, report."""
    path = tmp_path_factory.mktemp('check') / 'sub' / 'gpu_check.json'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, 'DTYPES', ())
        patch.setattr(cost, 'SETTINGS', SETTINGS)
        status = command.run_check(path)
    result = json.loads(path.read_text())
    return status, result, command.describe(result)


def test_check_passes_on_cpu_ranks(checked):
    status, result, report = checked
    assert [part['problems'] for part in result['parts']] == [[]] * 5
    assert status == 0
    assert [part['part'] for part in result['parts']] == [
        'golden case',
        'float64 parity',
        'ZeRO-1 and FSDP2',
        'host waits',
        'cost',
    ]
    assert 'not counted on a CPU' in report
    assert 'PROBLEM' not in report
    assert result['environment']['torch'] == torch.__version__
    assert f'torch {torch.__version__}' in report


def test_cost_has_a_row_for_each_variant(checked):
    _, result, report = checked
    rows = {
        (row['variant'], row['measured']): row for row in result['parts'][4]['data']
    }
    assert list(rows) == [
        ('plain', False),
        ('plain again', False),
        ('halves', False),
        ('halves', True),
        ('replicas', False),
        ('replicas', True),
    ]
    for row in rows.values():
        assert len(row['seconds_by_round']) == SETTINGS['rounds']
        assert (row['peak'], row['kernels'], row['synchronizations']) == (None,) * 3
    # The same images, the same model: the same operators.
    operators = {cell: row['operators'] for cell, row in rows.items()}
    assert operators['plain', False] == operators['plain again', False]
    assert operators['halves', False] == operators['replicas', False]
    # DDP's own reduction takes more than the communication hook.
    assert operators['halves', False] <= operators['plain', False]
    for estimator in ('halves', 'replicas'):
        assert operators[estimator, True] > operators[estimator, False]
    assert 'digits, 2 x gloo, CPU, 1 image(s) of 64 x 96' in report
    assert report.count('| halves ') == report.count('| replicas ') == 2


LOUD = """
import os
from gpu_check import command
from gpu_check.command import Outcome
from gpu_check.ranks import Ranks

def talk():
    print('a library', flush=True)
    os.system('echo a program')

if __name__ == '__main__':
    run = lambda ranks: Outcome(f'{ranks.run(talk)}')
    command.plan = lambda gpus: [('loud', Ranks(2, 0), run)]
    command.run_check()
"""


def test_only_the_report_goes_to_stdout(tmp_path):
    script = tmp_path / 'loud.py'
    script.write_text(LOUD)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', script],
        capture_output=True,
        text=True,
        timeout=200,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('# GPU check\n')
    for line in ('a library', 'a program'):
        assert line not in done.stdout
        assert done.stderr.count(line) == 2


def test_part_that_stops_is_a_problem_and_the_others_go_on(
    monkeypatch, tmp_path, capsys
):
    def stop(ranks):
        raise RuntimeError('rank 0:\nTraceback\nValueError: nothing works')

    plan = [
        ('first', Ranks(2, 0), stop),
        ('second', Ranks(2, 0), lambda ranks: Outcome('all well')),
        ('third', Ranks(2, 0), lambda ranks: Outcome('odd', ['1 is more than 0'])),
    ]
    monkeypatch.setattr(command, 'plan', lambda gpus: plan)
    path = tmp_path / 'check.json'
    assert command.run_check(path) == 1
    report = capsys.readouterr().out
    assert '- first (2 x gloo, CPU): ValueError: nothing works' in report
    assert '- third (2 x gloo, CPU): 1 is more than 0' in report
    states = [
        line.split('|')[3].strip()
        for line in report.splitlines()
        if 'gloo' in line and line.startswith('|')
    ]
    assert states == ['PROBLEM', 'ok', 'PROBLEM']
    first = json.loads(path.read_text())['parts'][0]
    assert 'ValueError: nothing works' in first['data']


def test_cpu_is_told_what_the_check_needs(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert main([]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith('The GPU check needs a GPU that torch can use (torch ')
    assert printed.count('\n') == 1


def test_each_missing_requirement_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 8)
    monkeypatch.setattr(torch.distributed, 'is_nccl_available', lambda: True)
    monkeypatch.setattr(environment, 'mmcv_has_cuda', lambda: True)
    assert environment.missing_requirements() == []
    monkeypatch.setattr(torch.distributed, 'is_nccl_available', lambda: False)
    monkeypatch.setattr(environment, 'mmcv_has_cuda', lambda: False)
    assert environment.missing_requirements() == [
        'mmcv compiled with CUDA',
        'a torch with NCCL, for 8 GPUs',
    ]
    monkeypatch.setattr(environment.importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    assert environment.missing_requirements() == [
        'the package mmdet',
        'the package mmcv',
        'the package scikit-learn',
        'the package pycocotools',
    ]


def test_mmcv_without_operators_or_without_cuda_is_recognized(monkeypatch):
    import mmcv.ops

    monkeypatch.setattr(mmcv.ops, 'get_compiling_cuda_version', lambda: '12.8')
    assert environment.mmcv_has_cuda()
    monkeypatch.setattr(mmcv.ops, 'get_compiling_cuda_version', lambda: 'not available')
    assert not environment.mmcv_has_cuda()

    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(environment.importlib, 'import_module', fail)
    assert not environment.mmcv_has_cuda()


def test_driver_version_is_that_of_nvidia_smi(tmp_path, monkeypatch):
    program = tmp_path / 'nvidia-smi'
    monkeypatch.setenv('PATH', str(tmp_path))
    assert environment.environment()['driver'] is None
    program.write_text('#!/bin/sh\necho "| Driver Version: 570.86.15    CUDA"\n')
    program.chmod(0o755)
    assert environment.environment()['driver'] == '570.86.15'
    program.write_text('#!/bin/sh\nexit 9\n')
    assert environment.environment()['driver'] is None


def test_gpu_check_is_started_with_its_file(monkeypatch, tmp_path):
    monkeypatch.setattr(__main__, 'missing_requirements', lambda: [])
    monkeypatch.setattr(command, 'run_check', lambda out: 7 if out == tmp_path else 0)
    assert main(['--out', str(tmp_path)]) == 7
