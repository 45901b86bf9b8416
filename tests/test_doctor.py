"""Doctor: each problem is found and reported with its fix."""

import importlib
import os
import re
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import cv2
import pytest
import torch
from installed import packages_by_module

from agvm_mm import doctor

MISSING = ModuleNotFoundError
ROOT = Path(__file__).parent.parent


def block(monkeypatch, *names, error=None):
    """Make the import of some modules fail, by default as if not installed."""
    real = importlib.import_module

    def import_module(name, *args):
        for blocked in names:
            if name == blocked or name.startswith(blocked + '.'):
                raise error or MISSING(f"No module named '{blocked}'", name=blocked)
        return real(name, *args)

    monkeypatch.setattr(doctor.importlib, 'import_module', import_module)


def test_current_installation_has_no_problem():
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'agvm_mm.doctor'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Everything that training needs works.' in done.stdout
    assert doctor.PROBLEM not in done.stdout


def examine_setuptools():
    """Return the finding, which only the whole examination has."""
    (found,) = (f for f in doctor.examine_installation() if f.name == 'setuptools')
    return found


@pytest.mark.parametrize(
    'error, found',
    [
        (None, 'No module named'),
        (OSError('libtorch.so: cannot open\nand more'), 'libtorch.so: cannot open'),
        (ImportError('_ext.so: undefined symbol: _ZN3c10'), 'undefined symbol'),
    ],
    ids=['missing', 'broken', 'other torch'],
)
@pytest.mark.parametrize(
    'blocked, examine, fix',
    [
        ('pkg_resources', examine_setuptools, '--no-deps "setuptools<82"'),
        ('mmcv', doctor.examine_mmcv, '--no-build-isolation'),
        ('mmcv.ops', doctor.examine_mmcv, '--no-build-isolation'),
    ],
)
def test_missing_or_broken_requirement_is_reported_with_command(
    monkeypatch, blocked, examine, fix, error, found
):
    assert examine().state == doctor.OK
    block(monkeypatch, blocked, error=error)
    finding = examine()
    assert finding.state == doctor.PROBLEM
    assert found in finding.found and '\n' not in finding.found
    assert fix in finding.fix


@pytest.mark.parametrize('row', doctor.OPTIONAL, ids=lambda row: row[0])
def test_optional_package_may_be_missing_but_not_broken(monkeypatch, row):
    _, module, package, without = row
    assert doctor.examine_import(*row).state == doctor.OK
    block(monkeypatch, module)
    finding = doctor.examine_import(*row)
    assert (finding.state, finding.fix) == (doctor.WARNING, f'pip install {package}')
    assert without in finding.found
    # Installed, but compiled against another numpy.
    broken = ValueError('numpy.dtype size changed\nand more lines')
    block(monkeypatch, module, error=broken)
    finding = doctor.examine_import(*row)
    assert finding.state == doctor.PROBLEM
    assert finding.found.endswith('numpy.dtype size changed')
    # With its dependencies pip would install the newest torch, numpy and setuptools.
    package = package.removeprefix('--no-deps ')
    assert finding.fix == f'pip install --force-reinstall --no-deps {package}'
    assert 'setuptools' not in finding.fix


def test_no_command_changes_torch():
    """A package that requires torch is installed without its requirements."""
    rows = [(module.partition('.')[0], fix) for _, module, fix, _ in doctor.OPTIONAL]
    commands = [*rows, *doctor.packages().items()]
    owners = packages_by_module()
    requiring = {
        fix
        for module, fix in commands
        for owner in owners[module]
        for needed in metadata.requires(owner) or ()
        if re.match(r'torch(vision)?\b(?!.*extra)', needed)
    }
    assert requiring == {'--no-deps "pytorch-optimizer>=4,<5"'}
    assert '--no-deps' in doctor.build_mmcv() and '--no-deps' in VISION


def test_command_for_mmcv_compiles_as_the_headers_of_torch_ask(tmp_path, monkeypatch):
    """The compiler of the command takes C++20, though mmcv's setup asks for C++17."""
    monkeypatch.setattr(torch, '__version__', '2.13.0+cpu')
    assert doctor.build_mmcv().startswith('pip install --no-build-isolation')
    monkeypatch.setattr(torch, '__version__', '2.15.0+cpu')
    command = doctor.build_mmcv().partition('pip install')[0]
    source = tmp_path / 'source.cpp'
    source.write_text('static_assert(__cplusplus >= 202002L, "not C++20");')
    compile_it = 'sh -c \'"$CXX" -std=c++17 -fsyntax-only source.cpp\''
    done = subprocess.run(
        ['bash', '-c', f'{command} {compile_it}'], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stderr


VISION = doctor.install_torchvision()


TORCHVISION_OF = [
    ('2.1.2', '"torchvision==0.16.*"'),
    ('2.6.0+cu124', '--index-url {}/cu124 "torchvision==0.21.*"'),
    ('2.13.0+cpu', '--index-url {}/cpu "torchvision==0.28.*"'),
    ('2.5.1+rocm6.2', '--index-url {}/rocm6.2 "torchvision==0.20.*"'),
    ('2.6.0a0+gitecf3bae', '"torchvision==0.21.*"'),
    ('3.0.0', 'torchvision'),
]


def test_torchvision_of_each_torch(subtests, monkeypatch):
    for torch_version, command in TORCHVISION_OF:
        with subtests.test(torch_version=torch_version, command=command):
            monkeypatch.setattr(torch, '__version__', torch_version)
            expected = command.format('https://download.pytorch.org/whl')
            command = doctor.install_torchvision()
            assert command == f'pip install --force-reinstall --no-deps {expected}'


@pytest.mark.parametrize(
    'version, error, state, found',
    [
        (None, None, 'warning', 'not installed: no weights from torchvision://'),
        ('{}.1', None, 'ok', ''),
        ('{}.1+cpu', None, 'ok', ''),
        ('0.15.2', None, 'warning', '0.15.2 with torch {torch}, which is not its'),
        ('0.15.2', RuntimeError('operator nms\n'), 'PROBLEM', '{torch}: operator nms'),
        ('{}.1', OSError('libcudart.so.12'), 'PROBLEM', '{torch}: libcudart.so.12'),
    ],
)
def test_torchvision_belongs_to_a_torch(monkeypatch, version, error, state, found):
    release = f'0.{int(torch.__version__.split(".")[1]) + 15}'
    if version:
        install(monkeypatch, 'torchvision', version=version.format(release))
        monkeypatch.setitem(sys.modules, 'torchvision', types.ModuleType('torchvision'))
    else:
        install(monkeypatch)
    if error:
        block(monkeypatch, 'torchvision', error=error)
    finding = doctor.examine_torchvision()
    assert finding.state == state
    assert found.format(torch=torch.__version__) in finding.found
    assert finding.fix == ('' if state == 'ok' else VISION)
    if state == 'ok':  # Which release belongs to later ones is not known.
        monkeypatch.setattr(torch, '__version__', '3.0.0')
        assert doctor.examine_torchvision().state == doctor.OK


def test_what_imports_a_broken_package_is_not_blamed(monkeypatch):
    """A recompilation of mmcv would take ten minutes and not help."""
    broken = RuntimeError('operator torchvision::nms does not exist')
    monkeypatch.setattr(
        doctor,
        'examine_torchvision',
        lambda: doctor.Finding('torchvision', doctor.PROBLEM, 'broken', VISION),
    )
    block(monkeypatch, 'mmcv', 'mmdet.models', 'sklearn', error=broken)
    findings = doctor.examine_installation()
    fixes = {f.name: f.fix for f in findings if f.state == doctor.PROBLEM}
    assert {'mmcv', 'mmdet', 'scikit-learn'} < set(fixes)
    assert fixes.pop('torchvision') == VISION
    assert set(fixes.values()) == {'fix what is above, then run this again'}


@pytest.mark.parametrize('module, package', [('cv2', 'opencv-python'), ('a.b', 'a')])
def test_missing_dependency_is_not_a_matter_of_mmcv(monkeypatch, module, package):
    error = MISSING(f'No module named {module!r}', name=module)
    block(monkeypatch, 'mmcv', 'mmseg.models', error=error)
    version = torch.__version__.partition('+')[0]
    for finding in (doctor.examine_mmcv(), doctor.examine_toolbox('mmseg')):
        assert finding.state == doctor.PROBLEM
        assert finding.fix == f'pip install {package} "torch=={version}"'
    block(monkeypatch, 'mmdet', error=MISSING('no', name='torchvision'))
    assert doctor.examine_toolbox('mmdet').fix == VISION


def test_opencv_without_a_desktop(tmp_path):
    (tmp_path / 'cv2.py').write_text("raise ImportError('libGL.so.1: cannot open')")
    paths = os.pathsep.join(map(str, (tmp_path, ROOT)))
    done = subprocess.run(
        [sys.executable, '-m', 'agvm_mm.doctor'],
        env=os.environ | dict(PYTHONPATH=paths),
        capture_output=True,
        text=True,
    )
    # MMEngine imports it with the package.
    last = done.stderr.splitlines()[-1]
    fix = 'pip install --force-reinstall --no-deps opencv-python-headless'
    assert 'cannot be imported (libGL.so.1: cannot open)' in last and fix in last


def test_versions_and_first_lines(monkeypatch):
    versions = {f.name: f.found for f in doctor.examine_installation()}
    assert versions['scikit-learn'] == metadata.version('scikit-learn')
    assert versions['tensorboard'] == metadata.version('tensorboard')
    assert versions['opencv'] == cv2.__version__
    broken = ImportError('\ntransformers needs a newer tokenizers\nmore')
    block(monkeypatch, 'sklearn', error=broken)
    finding = doctor.examine_import('scikit-learn', 'sklearn', 'scikit-learn')
    assert finding.found == 'transformers needs a newer tokenizers'


def test_folder_that_was_left_behind_is_no_package(monkeypatch, tmp_path):
    """As cv2 after one of two builds of OpenCV was uninstalled."""
    (tmp_path / 'left_behind').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor.examine_import('opencv', 'left_behind', '', repair='again')
    assert (finding.state, finding.fix) == (doctor.PROBLEM, 'again')
    assert finding.found == 'left_behind is a folder without a module'


def test_packages_with_the_same_files(monkeypatch):
    assert not doctor.examine_twins()
    owners = dict(
        cv2=['opencv-python-headless', 'opencv-python', 'opencv-python'],
        mmcv=['mmcv', 'mmcv'],
        tests=['one', 'two'],
    )
    monkeypatch.setattr(doctor.metadata, 'packages_distributions', lambda: owners)
    (found,) = doctor.examine_twins()
    assert (found.name, found.state) == ('cv2', doctor.WARNING)
    both = 'opencv-python and opencv-python-headless have the same files'
    assert found.found == both
    assert found.fix.startswith('pip uninstall opencv-python opencv-python-headless, ')


def test_numpy_that_torch_cannot_use(monkeypatch):
    assert doctor.examine_numpy().state == doctor.OK

    def numpy(tensor):
        raise RuntimeError('Numpy is not available')

    monkeypatch.setattr(torch.Tensor, 'numpy', numpy)
    finding = doctor.examine_numpy()
    assert finding.state == doctor.PROBLEM
    assert finding.fix == 'pip install "numpy<2" "opencv-python<5"'


def install(monkeypatch, *names, version='1.0'):
    """Make these the only installed packages."""

    def version_of(name):
        if name not in names:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(doctor.metadata, 'version', version_of)


@pytest.mark.parametrize(
    'installed, mmcv, mmdet, mmseg',
    [
        ('mmengine', 'mmcv==2.1.0', 'mmdet==3.3.0', 'mmsegmentation==1.2.2'),
        ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation'),
    ],
)
def test_fixes_name_the_packages_of_the_installed_stack(
    monkeypatch, installed, mmcv, mmdet, mmseg
):
    """The forks have the same modules: OpenMMLab's packages would overwrite them."""
    install(monkeypatch, installed)
    block(monkeypatch, 'mmcv', 'mmdet', 'mmseg')
    for module, package in (('mmdet', mmdet), ('mmseg', mmseg)):
        finding = doctor.examine_toolbox(module)
        assert finding.state == doctor.WARNING
        assert finding.fix == f'pip install {package}'
    assert doctor.examine_mmcv().fix.endswith(f'--no-deps {mmcv}')


def test_toolbox_that_fails_with_working_operators(monkeypatch):
    block(monkeypatch, 'mmdet.models', error=OSError('libx.so: cannot open\nand more'))
    finding = doctor.examine_toolbox('mmdet')
    assert (finding.state, finding.found) == (doctor.PROBLEM, 'libx.so: cannot open')
    assert 'python -c "import mmdet.models"' in finding.fix


def test_toolbox_that_refuses_installed_mmcv(monkeypatch):
    block(monkeypatch, 'mmdet', error=AssertionError('MMCV==2.2.0 is incompatible'))
    finding = doctor.examine_toolbox('mmdet')
    assert finding.state == doctor.PROBLEM
    assert finding.fix == doctor.build_mmcv()


def test_no_toolbox_is_a_problem(monkeypatch):
    block(monkeypatch, 'mmdet')
    assert 'toolbox' not in {f.name for f in doctor.examine_installation()}
    block(monkeypatch, 'mmseg')
    found = {f.name: f for f in doctor.examine_installation()}
    assert found['mmdet'].state == found['mmseg'].state == doctor.WARNING
    assert found['toolbox'].state == doctor.PROBLEM
    package = doctor.packages()
    expected = f'pip install "{package["mmdet"]}" or "{package["mmseg"]}"'
    assert found['toolbox'].fix == expected


def test_operator_with_wrong_result(monkeypatch):
    import mmcv.ops

    monkeypatch.setattr(
        mmcv.ops, 'nms', lambda boxes, *_: (boxes, torch.tensor([0, 1]))
    )
    finding = doctor.examine_mmcv()
    assert finding.state == doctor.PROBLEM and 'nms is wrong' in finding.found


def test_operators_that_do_not_run_on_the_device_of_a_run(monkeypatch):
    """As those of an mmcv that was built without CUDA, on a machine with GPUs."""
    assert doctor.examine_mmcv().found.endswith('operators run on cpu')
    monkeypatch.setattr(doctor, 'get_device', lambda: 'meta')
    finding = doctor.examine_mmcv()
    assert finding.state == doctor.PROBLEM and finding.fix == doctor.build_mmcv()
    assert 'nms_impl: implementation for device meta not found' in finding.found


def test_gpus_without_nccl_are_a_problem(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 8)
    monkeypatch.setattr(torch.distributed, 'is_nccl_available', lambda: False)
    assert doctor.examine_distributed().state == doctor.PROBLEM
    monkeypatch.setattr(torch.distributed, 'is_nccl_available', lambda: True)
    assert doctor.examine_distributed().found == 'nccl, gloo; 8 GPU(s)'


def test_problems_set_exit_status(monkeypatch, capsys):
    block(monkeypatch, 'pkg_resources')
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    assert 'PROBLEM  setuptools' in printed and '1 problem(s)' in printed


def test_gpus_have_their_own_check(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.distributed, 'is_nccl_available', lambda: True)
    finding = doctor.examine_distributed()
    assert finding.state == doctor.OK and 'python -m gpu_check' in finding.fix


def test_package_does_not_know_the_gpu_check():
    code = 'import sys; import agvm_mm.doctor; assert "gpu_check" not in sys.modules'
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
