"""The Slurm scripts, with an srun that prints its arguments."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scripts import ROOT, load_script

SRUN = """#!{python}
import json, os, sys
names = ('PYTHONPATH', 'MASTER_PORT')
variables = {{name: os.environ.get(name) for name in names}}
print(json.dumps(dict(arguments=sys.argv[1:], variables=variables)))
"""


@pytest.fixture
def call(tmp_path: Path) -> Callable:
    """Return a function that runs a script with the srun above.

    It returns the arguments of srun and its environment variables.
    """
    srun = tmp_path / 'bin' / 'srun'
    srun.parent.mkdir()
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(0o755)

    def run(
        script: str, *arguments: str, **variables: str
    ) -> tuple[list[str], dict[str, str]]:
        environment = dict(os.environ, PYTHON='python3', **variables)
        environment['PATH'] = f'{srun.parent}{os.pathsep}{os.environ["PATH"]}'
        environment.pop('MASTER_PORT', None)
        done = subprocess.run(
            [ROOT / 'tools' / script, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert '+ exec srun' in done.stderr  # users see the command
        called = json.loads(done.stdout)
        return called['arguments'], called['variables']

    return run


def parse_args(script: str, arguments: list[str]) -> argparse.Namespace:
    """Parse arguments as a tool does."""
    return load_script(script).parse_args(arguments)


def split(arguments: list[str], script: str) -> tuple[list[str], list[str]]:
    """Split into the options of srun and the arguments of the Python script."""
    start = arguments.index('python3')
    assert arguments[start : start + 3] == [
        'python3',
        '-u',
        str(ROOT / 'tools' / script),
    ]
    return arguments[:start], arguments[start + 3 :]


def test_train_has_the_arguments_of_mmdetection(call: Callable):
    arguments, variables = call(
        'slurm_train.sh',
        'gpu',
        'a job',
        'configs/a.py',
        'a folder',
        '--amp',
        '--cfg-options',
        'model.depth=50',
        GPUS='16',
        CPUS_PER_TASK='6',
        SRUN_ARGS='--quotatype=reserved  --exclude=n[1-2]\n--qos=a',
    )
    options, rest = split(arguments, 'train.py')
    assert options == [
        '--partition=gpu',
        '--job-name=a job',
        '--gres=gpu:8',
        '--ntasks=16',
        '--ntasks-per-node=8',
        '--cpus-per-task=6',
        '--kill-on-bad-exit=1',
        '--quotatype=reserved',
        '--exclude=n[1-2]',
        '--qos=a',
    ]
    args = parse_args('train.py', rest)
    assert (args.config, args.work_dir) == ('configs/a.py', 'a folder')
    assert (args.launcher, args.amp) == ('slurm', True)
    assert args.cfg_options == {'model.depth': 50}
    # The tasks import this package, whichever folder they start in.
    first = variables['PYTHONPATH'].split(os.pathsep)[0]
    assert Path(first).resolve() == ROOT
    assert variables['MASTER_PORT'] is None


def test_few_gpus_share_a_machine_and_port_is_set(call: Callable):
    arguments, variables = call(
        'slurm_train.sh', 'gpu', 'job', 'a.py', 'folder', GPUS='4', PORT='29511'
    )
    options, _ = split(arguments, 'train.py')
    assert {'--gres=gpu:4', '--ntasks=4', '--ntasks-per-node=4'} < set(options)
    assert variables['MASTER_PORT'] == '29511'
    arguments, _ = call(
        'slurm_train.sh', 'gpu', 'job', 'a.py', 'folder', GPUS_PER_NODE='4'
    )
    options, _ = split(arguments, 'train.py')
    assert {'--gres=gpu:4', '--ntasks=8', '--ntasks-per-node=4'} < set(options)


def test_signal_before_the_end_is_passed_on(call: Callable):
    arguments, _ = call(
        'slurm_train.sh',
        'gpu',
        'job',
        'a.py',
        'folder',
        SIGNAL='USR1@300',
        SRUN_ARGS='--exclude=n1',
    )
    options, _ = split(arguments, 'train.py')
    assert options[-2:] == ['--signal=USR1@300', '--exclude=n1']


def test_test_has_the_arguments_of_mmdetection(call: Callable):
    arguments, _ = call(
        'slurm_test.sh', 'gpu', 'job', 'a.py', 'epoch_1.pth', '--out', 'p.pkl'
    )
    _, rest = split(arguments, 'test.py')
    args = parse_args('test.py', rest)
    assert (args.config, args.checkpoint) == ('a.py', 'epoch_1.pth')
    assert (args.launcher, args.out) == ('slurm', 'p.pkl')


@pytest.mark.parametrize(
    'script, last', [('slurm_train.sh', 'WORK_DIR'), ('slurm_test.sh', 'CHECKPOINT')]
)
def test_missing_arguments_print_the_usage(script: str, last: str):
    script = ROOT / 'tools' / script
    done = subprocess.run(
        [script, 'gpu', 'job', 'a.py'], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f'usage: {script} PARTITION JOB_NAME CONFIG {last}' in done.stderr


def test_missing_srun_is_an_error(tmp_path: Path):
    (tmp_path / 'dirname').symlink_to('/usr/bin/dirname')
    done = subprocess.run(
        ['/bin/bash', ROOT / 'tools/slurm_train.sh', 'gpu', 'job', 'a.py', 'folder'],
        env=dict(os.environ, PATH=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 127
    assert 'no srun on the PATH' in done.stderr and 'dist_train.sh' in done.stderr
