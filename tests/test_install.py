"""tools/dev/install.sh, with stand-ins for Python, the compiler and the disk.

The stand-in for Python logs its calls and installs nothing, so the whole flow runs
offline within seconds.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = (
    'awk basename bash cat chmod cksum cp dirname flock getconf ln mkdir mv nproc rm '
    'sleep'
).split()

# `mmcv._ext` imports after mmcv has been installed, pip works after the environment has
# been created. PIP_WAIT makes one pip call hang, PIP_FAIL makes it fail, and with
# DOCTOR_FAIL the doctor finds a problem.
FAKE_PYTHON = r"""#!/usr/bin/env bash
here=$(dirname "$0")
echo "$*" >>"$FAKE_LOG"
case "$*" in
  -V) echo "Python ${FAKE_VERSION:-3.11.9}" ;;
  *_base_executable*) echo "$FAKE_BASE" ;;
  *sysconfig*) echo "$FAKE_INCLUDE" ;;
  *include_paths*) echo "$FAKE_INCLUDE" ;;
  *mmcv._ext*) [ -e "$here/mmcv" ] ;;
  *version_info*)
    [ -z "${FAKE_OLD:-}" ] ;;
  *agvm_mm.doctor*)
    echo 'what the doctor found'
    [ -z "${DOCTOR_FAIL:-}" ] ;;
  '-m venv '*)
    mkdir -p "$3/bin"
    [ -e "$3/bin/python" ] || cp "$0" "$3/bin/python"
    echo >"$3/bin/pip" ;;
  '-m pip '*)
    [ -e "$here/pip" ] || exit 1
    case "$*" in *"${PIP_WAIT:-nothing}"*) echo >"$FAKE_LOG.waits"; sleep 20 ;; esac
    case "$*" in *"${PIP_FAIL:-nothing}"*) exit 1 ;; esac
    case "$*" in
      *'cache dir') echo /cache ;;
      *mmcv) ${CXX:-c++} -std=c++17 >>"$FAKE_LOG"; echo >"$here/mmcv" ;;
    esac ;;
esac
"""


def default_signals():
    """Let a child die of a signal, also when this process ignores it.

    Without job control a shell starts background jobs with SIGINT and SIGQUIT ignored,
    and a shell script cannot undo that.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class Sandbox:
    """Copy of the checkout's installer with programs that only pretend to work."""

    def __init__(self, root):
        self.root = root / 'checkout'
        self.bin = root / 'bin'
        self.log = root / 'log'
        self.venv = self.root / '.venv'
        self.stamp = self.venv / 'agvm_mm.stamp'
        include = root / 'include'
        for folder in (self.root / 'agvm_mm', self.bin, include):
            folder.mkdir(parents=True)
        shutil.copytree(ROOT / 'tools', self.root / 'tools')
        for name in ('setup.py', 'agvm_mm/version.py', 'agvm_mm/doctor.py'):
            shutil.copy(ROOT / name, self.root / name)
        (include / 'Python.h').touch()
        for name in TOOLS:
            found = shutil.which(name)
            if found:
                (self.bin / name).symlink_to(found)
        self.program('python3.11', FAKE_PYTHON)
        self.program('c++', '#!/bin/sh\nexit 0\n')
        self.disk(100)
        self.env = {
            'PATH': str(self.bin),
            'FAKE_LOG': str(self.log),
            'FAKE_INCLUDE': str(include),
            'FAKE_BASE': str(self.bin / 'python3.11'),
        }

    def program(self, name, text):
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def disk(self, free_gb):
        row = f'/dev/disk 1 1 {free_gb * 1024**2} 1% /'
        self.program('df', f'#!/bin/sh\necho header\necho {row}\n')

    def start(self, *args, **env):
        self.log.write_text('')
        return subprocess.Popen(
            [self.bin / 'bash', self.root / 'tools/dev/install.sh', *args],
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=default_signals,
        )

    def install(self, *args, **env):
        process = self.start(*args, **env)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def await_pip(self, process):
        """Wait until the pip call that `PIP_WAIT` names hangs."""
        while not Path(f'{self.log}.waits').exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)

    def pip_installs(self):
        calls = self.log.read_text().splitlines()
        return [c for c in calls if c.startswith('-m pip') and ' install ' in c]


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


def test_second_run_does_nothing(sandbox):
    code, output = sandbox.install()
    assert code == 0, output
    installs = sandbox.pip_installs()
    order = ['setuptools', 'torch-2.13.0.txt', 'mmcv', 'common.txt', 'panoptic', '-e .']
    assert len(installs) == len(order)
    assert installs[3].endswith('-rtools/dev/pins/mmengine-0.10.7.txt')
    assert all(word in call for word, call in zip(order, installs, strict=True))
    assert '--no-build-isolation' in installs[2]

    assert sandbox.install() == (0, '')
    assert sandbox.pip_installs() == []


@pytest.mark.parametrize(
    'name',
    [
        'setup.py',
        'agvm_mm/version.py',
        'agvm_mm/doctor.py',
        'tools/dev/install.sh',
        'tools/dev/pins/common.txt',
        'tools/dev/pins/torch-2.13.0.txt',
        'tools/dev/pins/stack-openmmlab.txt',
        'tools/dev/pins/mmengine-0.10.7.txt',
    ],
)
def test_changed_input_installs_in_place(sandbox, name):
    code, output = sandbox.install()
    assert code == 0, output
    with open(sandbox.root / name, 'a') as file:
        file.write('# changed\n')
    (sandbox.venv / 'mine').touch()
    code, output = sandbox.install()
    assert code == 0, output
    assert sandbox.pip_installs()
    assert (sandbox.venv / 'mine').exists()
    assert sandbox.install() == (0, '')


def test_other_mmengine_is_another_lane(sandbox):
    args = ('2.13.0', '0.11.0rc3', '.venv-mmengine0.11.0rc3')
    code, output = sandbox.install(*args)
    assert code == 0, output
    assert not sandbox.venv.exists()
    with_pins = [call for call in sandbox.pip_installs() if ' -c ' in call]
    assert with_pins
    for call in with_pins:
        assert '-ctools/dev/pins/mmengine-0.11.0rc3.txt' in call
        assert '0.10.7' not in call
    assert sandbox.install(*args) == (0, '')
    # The same environment for another MMEngine is completed in place.
    sandbox.install('2.13.0', '0.10.7', args[2])
    assert sandbox.pip_installs()


def test_forks_are_another_lane(sandbox):
    args = ('2.13.0', '0.10.7', '.venv-onedl', 'onedl')
    code, output = sandbox.install(*args)
    assert code == 0, output
    assert not sandbox.venv.exists()
    installs = sandbox.pip_installs()
    assert installs[2].endswith(' onedl-mmcv')
    assert 'onedl-mmdetection==' in installs[4] and '--no-deps' in installs[4]
    for call in installs:
        # The forks have the same modules: no package of OpenMMLab next to them.
        assert 'stack-openmmlab' not in call and 'pins/mmengine-' not in call
        assert ' -c ' not in call or '-ctools/dev/pins/stack-onedl.txt' in call
    assert sandbox.install(*args) == (0, '')
    code, output = sandbox.install('2.13.0', '0.11.0rc3', '.venv-x', 'onedl')
    assert code == 1
    assert 'MMENGINE=0.11.0rc3 has no effect' in output


def test_pinned_forks_and_openmmlab_packages_exclude_each_other():
    pins = ROOT / 'tools' / 'dev' / 'pins'
    names = {'mmcv', 'mmdet', 'mmsegmentation', 'mmengine'}
    for file in ('common.txt', 'stack-onedl.txt'):
        found = {line.partition('==')[0] for line in (pins / file).open()}
        assert not names & found, file


def test_python_of_a_lane(sandbox):
    sandbox.program('python3.12', FAKE_PYTHON)
    base = str(sandbox.bin / 'python3.12')
    settings = dict(PYTHON='python3.12', FAKE_VERSION='3.12.1', FAKE_BASE=base)
    args = ('2.13.0', '0.10.7', '.venv-python3.12')
    code, output = sandbox.install(*args, **settings)
    assert code == 0, output
    assert 'creating .venv-python3.12 with Python 3.12.1' in output
    assert not sandbox.venv.exists()
    assert sandbox.install(*args, **settings) == (0, '')


def test_python_of_a_lane_may_be_one_of_pyenv(sandbox):
    """pyenv's command python3.12 fails unless this release is selected."""
    sandbox.program('python3.12', '#!/bin/sh\nexit 127\n')
    root = sandbox.root.parent / 'pyenv'
    installed = root / 'versions' / '3.12.1' / 'bin'
    installed.mkdir(parents=True)
    shutil.copy(sandbox.bin / 'python3.11', installed / 'python3.12')
    sandbox.program('pyenv', f'#!/bin/sh\necho {root}\n')
    settings = dict(PYTHON='python3.12', FAKE_BASE=str(installed / 'python3.12'))
    code, output = sandbox.install(**settings)
    assert code == 0, output


def test_environment_of_another_python_is_refused(sandbox):
    code, output = sandbox.install()
    assert code == 0, output
    calls = FAKE_PYTHON.replace('Python ${FAKE_VERSION:-3.11.9}', 'Python 3.12.1')
    sandbox.program('python3.12', calls)
    base = str(sandbox.bin / 'python3.12')
    code, output = sandbox.install(PYTHON='python3.12', FAKE_BASE=base)
    assert code == 1
    assert '.venv has Python 3.11.9, but PYTHON=python3.12 is Python 3.12.1' in output
    assert 'make install PYTHON=python3.12' in output
    # Nothing was changed, and the same release under another name is accepted.
    assert sandbox.install(PYTHON='python3.11') == (0, '')


def check_lane(settings, arguments):
    if not shutil.which('make'):
        pytest.skip('needs make')
    lane = ('TORCH', 'MMENGINE', 'PYTHON', 'STACK', 'MAKEFLAGS', 'MAKEOVERRIDES')
    done = subprocess.run(
        ['make', '--no-print-directory', '-n', 'install', *settings.split()],
        cwd=ROOT,
        # Without the settings of the lane that runs this test.
        env={name: value for name, value in os.environ.items() if name not in lane},
        capture_output=True,
        text=True,
        check=True,
    )
    python = dict(word.split('=') for word in settings.split()).get('PYTHON', '')
    expected = f"PYTHON='{python}' bash tools/dev/install.sh {arguments}\n"
    assert done.stdout == expected


LANES = [
    ('', '2.13.0 0.10.7 .venv openmmlab'),
    ('TORCH=2.1.2', '2.1.2 0.10.7 .venv-torch2.1.2 openmmlab'),
    (
        'MMENGINE=0.11.0rc3',
        '2.13.0 0.11.0rc3 .venv-mmengine0.11.0rc3 openmmlab',
    ),
    ('PYTHON=python3.11', '2.13.0 0.10.7 .venv openmmlab'),
    ('PYTHON=python3.10', '2.13.0 0.10.7 .venv-python3.10 openmmlab'),
    ('PYTHON=/a/bin/python3.12', '2.13.0 0.10.7 .venv-python3.12 openmmlab'),
    ('STACK=onedl', '2.13.0 0.10.7 .venv-onedl onedl'),
    ('TORCH=2.15.0', '2.15.0 0.10.7 .venv-torch2.15.0 openmmlab'),
    (
        'TORCH=2.1.2 PYTHON=python3.10',
        '2.1.2 0.10.7 .venv-torch2.1.2-python3.10 openmmlab',
    ),
]


def test_every_lane_has_its_own_folder(subtests):
    for settings, arguments in LANES:
        with subtests.test(settings=settings, arguments=arguments):
            check_lane(settings, arguments)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_interrupted_run_is_not_trusted(sandbox, number):
    process = sandbox.start(PIP_WAIT='common.txt')
    sandbox.await_pip(process)
    # To the whole process group, as a terminal does.
    os.killpg(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert sandbox.stamp.read_text() == 'unfinished\n'

    (sandbox.venv / 'leftover').touch()
    code, output = sandbox.install()
    assert code == 0, output
    assert 'interrupted' in output
    assert not (sandbox.venv / 'leftover').exists()
    assert sandbox.install() == (0, '')


def test_interrupted_deletion_is_not_trusted(sandbox):
    sandbox.install()
    sandbox.stamp.write_text('unfinished\n')
    (sandbox.venv / 'leftover').touch()
    real = sandbox.bin / 'rm'
    real.rename(sandbox.bin / 'real_rm')
    # The stamp is deleted first, then the power fails.
    sandbox.program(
        'rm',
        '#!/usr/bin/env bash\n[ ! -e "$2" ] && exit 0\n'
        'real_rm -f "$2/agvm_mm.stamp"; kill -9 $PPID\n',
    )
    code, _ = sandbox.install()
    assert code == -signal.SIGKILL

    real.unlink()
    (sandbox.bin / 'real_rm').rename(real)
    code, output = sandbox.install()
    assert code == 0, output
    assert not (sandbox.venv / 'leftover').exists()


def test_activated_environment_is_created_again(sandbox):
    """The first Python on the PATH is then the one that will be deleted."""
    sandbox.install()
    shutil.copy(sandbox.venv / 'bin' / 'python', sandbox.venv / 'bin' / 'python3.11')
    sandbox.stamp.write_text('unfinished\n')
    code, output = sandbox.install(PATH=f'{sandbox.venv}/bin:{sandbox.bin}')
    assert code == 0, output


def test_failed_step_is_completed_in_place(sandbox):
    code, output = sandbox.install(PIP_FAIL='common.txt')
    assert code == 1
    assert 'run this again' in output
    assert not sandbox.stamp.exists()
    (sandbox.venv / 'kept').touch()
    code, output = sandbox.install()
    assert code == 0, output
    assert (sandbox.venv / 'kept').exists()


def test_problem_found_by_the_doctor_fails_the_installation(sandbox):
    code, output = sandbox.install(DOCTOR_FAIL='1')
    assert code == 1
    assert 'what the doctor found' in output and 'do not work together' in output
    assert not sandbox.stamp.exists()
    assert sandbox.log.read_text().splitlines()[-1].endswith('-m agvm_mm.doctor')
    code, output = sandbox.install()
    assert code == 0, output
    assert 'what the doctor found' in output


def test_interrupted_then_no_compiler_is_still_not_trusted(sandbox):
    sandbox.install()
    sandbox.stamp.write_text('unfinished\n')
    (sandbox.bin / 'c++').unlink()
    code, _ = sandbox.install()
    assert code == 1
    assert sandbox.stamp.read_text() == 'unfinished\n'


def test_environment_without_pip_is_completed(sandbox):
    (sandbox.venv / 'bin').mkdir(parents=True)
    shutil.copy(sandbox.bin / 'python3.11', sandbox.venv / 'bin' / 'python')
    code, output = sandbox.install()
    assert code == 0, output


def test_cached_operators_of_another_torch_are_compiled_again(sandbox):
    """Such a wheel installs but does not import."""
    text = FAKE_PYTHON.replace('*mmcv) ', "*'--no-cache-dir'*mmcv) ")
    sandbox.program('python3.11', text)
    code, output = sandbox.install()
    assert code == 0, output
    builds = [call for call in sandbox.pip_installs() if call.endswith(' mmcv')]
    assert len(builds) == 2
    assert '--no-cache-dir --force-reinstall --no-deps' in builds[1]


@pytest.mark.parametrize(('needs', 'flags'), [(17, ''), (20, ' -std=c++20')])
def test_operators_are_compiled_as_the_headers_of_torch_need(sandbox, needs, flags):
    (sandbox.root.parent / 'include' / 'ATen').mkdir()
    (sandbox.root.parent / 'include' / 'ATen' / 'ATen.h').write_text(f'C++{needs}')
    sandbox.program('clang', '#!/bin/sh\necho clang "$@"\n')
    code, output = sandbox.install(CXX='clang')
    assert code == 0, output
    assert f'clang -std=c++17{flags}' in sandbox.log.read_text().splitlines()


def test_operators_of_another_torch_are_not_in_its_cache(sandbox):
    """They can import and still be compiled for other headers."""
    for torch in ('2.13.0', '2.15.0'):
        code, output = sandbox.install(torch, '0.10.7', f'.venv-{torch}')
        assert code == 0, output
        (build,) = [call for call in sandbox.pip_installs() if call.endswith(' mmcv')]
        cache = ' --cache-dir /cache/torch-2.15.0 ' in build
        assert cache == (torch == '2.15.0')


def test_second_installation_waits_for_the_first(sandbox):
    if not shutil.which('flock'):
        pytest.skip('needs flock')
    first = sandbox.start(PIP_WAIT='-e .')
    sandbox.await_pip(first)
    second = sandbox.start()
    time.sleep(0.5)
    assert second.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0, output
    assert 'waiting' in output and 'interrupted' in output


def test_no_python(sandbox):
    (sandbox.bin / 'python3.11').unlink()
    code, output = sandbox.install()
    assert code == 1
    assert 'no CPython 3.10, 3.11 or 3.12 found' in output
    assert 'apt install python3.11' in output
    assert not sandbox.venv.exists()


def test_unsupported_python_only(sandbox):
    code, output = sandbox.install(FAKE_OLD='1')
    assert code == 1
    assert 'no CPython 3.10, 3.11 or 3.12 found' in output


def test_no_venv_module(sandbox):
    text = FAKE_PYTHON.replace('  -V)', '  *ensurepip*) exit 1 ;;\n  -V)')
    sandbox.program('python3.11', text)
    code, output = sandbox.install()
    assert code == 1
    assert 'venv' in output and 'ensurepip' in output


def test_no_headers(sandbox):
    code, output = sandbox.install(FAKE_INCLUDE='/nonexistent')
    assert code == 1
    assert 'Python.h' in output
    assert not sandbox.venv.exists()


def test_no_compiler(sandbox):
    (sandbox.bin / 'c++').unlink()
    code, output = sandbox.install()
    assert code == 1
    assert 'no working C++ compiler' in output and 'g++' in output
    assert not sandbox.venv.exists()


def test_little_disk_space(sandbox):
    sandbox.disk(1)
    code, output = sandbox.install()
    assert code == 1
    assert 'only 1024 MB free' in output and '8 GB' in output
    assert not sandbox.venv.exists()


def test_unknown_versions_list_the_known_ones(sandbox):
    code, output = sandbox.install('1.0.0')
    assert code == 1
    assert 'torch-2.13.0.txt' in output and 'torch-2.1.2.txt' in output
    code, output = sandbox.install('2.13.0', '0.1.0')
    assert code == 1
    assert 'mmengine-0.10.7.txt' in output and 'mmengine-0.11.0rc3.txt' in output
    code, output = sandbox.install('2.13.0', '0.10.7', '.venv', 'other')
    assert code == 1
    assert 'stack-onedl.txt' in output and 'stack-openmmlab.txt' in output
