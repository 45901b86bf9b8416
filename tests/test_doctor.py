"""Doctor: each problem is found and reported with its fix."""

import builtins
import importlib
import subprocess
import sys
import types
from importlib import metadata

import pytest
import torch

from agvm_mm import doctor

MISSING = ModuleNotFoundError


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


@pytest.mark.parametrize(
    'error, found',
    [
        (None, 'No module named'),
        (OSError('libtorch.so: cannot open\nand more'), 'libtorch.so: cannot open'),
    ],
    ids=['missing', 'broken'],
)
@pytest.mark.parametrize(
    'blocked, examine, fix',
    [
        ('pkg_resources', doctor.examine_setuptools, 'setuptools<82'),
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
    name, module, without, package = row
    if name == 'torchvision':  # Not installed for the tests.
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    assert doctor.examine_optional(*row).state == doctor.OK
    block(monkeypatch, module)
    finding = doctor.examine_optional(*row)
    assert (finding.state, finding.fix) == (doctor.WARNING, f'pip install {package}')
    assert without in finding.found
    # Installed, but compiled against another numpy.
    broken = ValueError('numpy.dtype size changed\nand more lines')
    block(monkeypatch, module, error=broken)
    finding = doctor.examine_optional(*row)
    assert finding.state == doctor.PROBLEM
    assert finding.found.endswith('numpy.dtype size changed')
    assert finding.fix == f'pip install --force-reinstall {package}'


def test_numpy_that_torch_cannot_use(monkeypatch):
    assert doctor.examine_numpy().state == doctor.OK

    def numpy(tensor):
        raise RuntimeError('Numpy is not available')

    monkeypatch.setattr(torch.Tensor, 'numpy', numpy)
    finding = doctor.examine_numpy()
    assert (finding.state, finding.fix) == (doctor.PROBLEM, 'pip install "numpy<2"')


STACKS = pytest.mark.parametrize(
    'installed, mmcv, mmdet, mmseg',
    [
        ('mmengine', 'mmcv==2.1.0', 'mmdet==3.3.0', 'mmsegmentation==1.2.2'),
        ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation'),
    ],
)


def install(monkeypatch, *names, modules=()):
    """Make these the only installed packages; modules are pairs (module, packages)."""

    def version(name):
        if name not in names:
            raise metadata.PackageNotFoundError(name)
        return '1.0'

    monkeypatch.setattr(doctor.metadata, 'version', version)
    owners = dict(modules)
    monkeypatch.setattr(doctor.metadata, 'packages_distributions', lambda: owners)


@STACKS
def test_fixes_name_the_packages_of_the_installed_stack(
    monkeypatch, installed, mmcv, mmdet, mmseg
):
    """The forks have the same modules: OpenMMLab's packages would overwrite them."""
    install(monkeypatch, installed)
    assert doctor.examine_stack().state == doctor.OK
    monkeypatch.setattr(doctor.importlib.util, 'find_spec', lambda name: None)
    for module, package in (('mmdet', mmdet), ('mmseg', mmseg)):
        finding = doctor.examine_toolbox(module)
        assert finding.state == doctor.WARNING
        assert finding.fix == f'pip install {package}'
    assert doctor.examine_toolboxes().fix == f'pip install "{mmdet}" or "{mmseg}"'
    block(monkeypatch, 'mmcv')
    assert doctor.examine_mmcv().fix.endswith(f'--no-deps {mmcv}')


def test_both_stacks_in_one_environment(monkeypatch):
    owners = {
        'mmengine': ['mmengine', 'mmengine', 'onedl-mmengine'],
        'mmcv': ['onedl-mmcv', 'onedl-mmcv'],
    }
    install(monkeypatch, 'mmengine', 'onedl-mmengine', 'onedl-mmcv', modules=owners)
    finding = doctor.examine_stack()
    assert finding.state == doctor.PROBLEM
    assert finding.found == 'mmengine, onedl-mmengine contain the same modules'
    assert finding.fix.startswith('pip uninstall mmengine onedl-mmengine,')


@pytest.mark.parametrize(
    'error',
    [
        MISSING("No module named 'mmcv._ext'", name='mmcv._ext'),
        MISSING("No module named 'mmcv'", name='mmcv'),
        ImportError('_ext.so: undefined symbol: _ZN3c10\nand more'),
        OSError('libtorch.so: cannot open shared object file'),
    ],
)
def test_toolbox_without_working_operators(monkeypatch, error):
    block(monkeypatch, 'mmdet.models', error=error)
    finding = doctor.examine_toolbox('mmdet')
    assert finding.state == doctor.PROBLEM
    assert finding.fix == doctor.build_mmcv()
    assert '\n' not in finding.found


def test_toolbox_with_missing_requirement(monkeypatch):
    block(monkeypatch, 'mmseg.models', error=MISSING('no ftfy', name='ftfy'))
    finding = doctor.examine_toolbox('mmseg')
    assert (finding.state, finding.fix) == (doctor.PROBLEM, 'pip install ftfy')


def test_toolbox_that_refuses_installed_mmcv(monkeypatch):
    block(monkeypatch, 'mmdet', error=AssertionError('MMCV==2.2.0 is incompatible'))
    finding = doctor.examine_toolbox('mmdet')
    assert finding.state == doctor.PROBLEM
    assert finding.fix == doctor.build_mmcv()


def test_no_toolbox_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, 'find_spec', lambda name: None)
    assert doctor.examine_toolboxes().state == doctor.PROBLEM


def test_operator_with_wrong_result(monkeypatch):
    import mmcv.ops

    monkeypatch.setattr(
        mmcv.ops, 'nms', lambda boxes, *_: (boxes, torch.tensor([0, 1]))
    )
    finding = doctor.examine_mmcv()
    assert finding.state == doctor.PROBLEM and 'nms is wrong' in finding.found


def test_other_class_registered_under_our_name(monkeypatch):
    from mmengine.registry import HOOKS

    monkeypatch.setitem(HOOKS.module_dict, 'VarianceSyncHook', builtins.object)
    finding = doctor.examine_registries()
    assert finding.state == doctor.PROBLEM
    assert 'VarianceSyncHook' in finding.found


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
