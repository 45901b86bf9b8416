"""doctor.py: each problem is found, and named with what mends it."""

import builtins
import importlib
import subprocess
import sys
import types

import pytest
import torch

from agvm_mm import doctor

MISSING = ModuleNotFoundError


def block(monkeypatch, *names, error=None):
    """Make imports of some modules fail, as if they were not installed."""
    real = importlib.import_module

    def import_module(name, *args):
        for blocked in names:
            if name == blocked or name.startswith(blocked + '.'):
                raise error or MISSING(f"No module named '{blocked}'", name=blocked)
        return real(name, *args)

    monkeypatch.setattr(doctor.importlib, 'import_module', import_module)


def test_this_installation_is_well():
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'agvm_mm.doctor'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'All that training needs works.' in done.stdout
    assert doctor.PROBLEM not in done.stdout


@pytest.mark.parametrize(
    'blocked, check, state, mend',
    [
        ('pkg_resources', doctor.check_setuptools, doctor.PROBLEM, 'setuptools<82'),
        ('mmcv', doctor.check_mmcv, doctor.PROBLEM, '--no-build-isolation'),
        ('mmcv.ops', doctor.check_mmcv, doctor.PROBLEM, '--no-build-isolation'),
    ],
)
def test_what_is_missing_comes_with_the_command(
    monkeypatch, blocked, check, state, mend
):
    assert check().state == doctor.OK
    block(monkeypatch, blocked)
    finding = check()
    assert finding.state == state
    assert mend in finding.mend


@pytest.mark.parametrize('what', doctor.OPTIONAL, ids=lambda what: what[0])
def test_what_only_some_need(monkeypatch, what):
    name, module, without, mend = what
    if name == 'torchvision':  # The tests do without.
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    assert doctor.check_optional(*what).state == doctor.OK
    block(monkeypatch, module)
    finding = doctor.check_optional(*what)
    assert (finding.state, finding.mend) == (doctor.WARNING, mend)
    assert without in finding.found
    # Installed, and compiled against something else.
    broken = ValueError('numpy.dtype size changed\nand more lines')
    block(monkeypatch, module, error=broken)
    finding = doctor.check_optional(*what)
    assert finding.state == doctor.PROBLEM
    assert finding.found.endswith('numpy.dtype size changed')
    assert finding.mend.startswith('pip install --force-reinstall ')


def test_a_torch_that_does_not_know_this_numpy(monkeypatch):
    assert doctor.check_numpy().state == doctor.OK

    def numpy(tensor):
        raise RuntimeError('Numpy is not available')

    monkeypatch.setattr(torch.Tensor, 'numpy', numpy)
    finding = doctor.check_numpy()
    assert (finding.state, finding.mend) == (doctor.PROBLEM, 'pip install "numpy<2"')


def test_a_toolbox_that_is_not_there(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, 'find_spec', lambda name: None)
    finding = doctor.check_toolbox('mmdet', 'mmdet==3.3.0')
    assert (finding.state, finding.mend) == (
        doctor.WARNING,
        'pip install mmdet==3.3.0',
    )


@pytest.mark.parametrize(
    'error',
    [
        MISSING("No module named 'mmcv._ext'", name='mmcv._ext'),
        MISSING("No module named 'mmcv'", name='mmcv'),
        ImportError('_ext.so: undefined symbol: _ZN3c10\nand more'),
        OSError('libtorch.so: cannot open shared object file'),
    ],
)
def test_a_toolbox_without_working_operators(monkeypatch, error):
    block(monkeypatch, 'mmdet.models', error=error)
    finding = doctor.check_toolbox('mmdet', 'mmdet==3.3.0')
    assert finding.state == doctor.PROBLEM
    assert '--no-build-isolation' in finding.mend and 'mmcv==2.1.0' in finding.mend
    assert '\n' not in finding.found


def test_a_toolbox_whose_own_requirement_is_missing(monkeypatch):
    block(monkeypatch, 'mmseg.models', error=MISSING('no ftfy', name='ftfy'))
    finding = doctor.check_toolbox('mmseg', 'mmsegmentation==1.2.2')
    assert (finding.state, finding.mend) == (doctor.PROBLEM, 'pip install ftfy')


def test_a_toolbox_that_refuses_this_mmcv(monkeypatch):
    block(monkeypatch, 'mmdet', error=AssertionError('MMCV==2.2.0 is incompatible'))
    finding = doctor.check_toolbox('mmdet', 'mmdet==3.3.0')
    assert finding.state == doctor.PROBLEM
    assert 'mmcv==2.1.0' in finding.mend


def test_without_any_toolbox(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, 'find_spec', lambda name: None)
    assert doctor.check_toolboxes().state == doctor.PROBLEM


def test_an_operator_that_is_wrong(monkeypatch):
    import mmcv.ops

    monkeypatch.setattr(
        mmcv.ops, 'nms', lambda boxes, *_: (boxes, torch.tensor([0, 1]))
    )
    finding = doctor.check_mmcv()
    assert finding.state == doctor.PROBLEM and 'nms is wrong' in finding.found


def test_a_class_of_another_package_under_our_name(monkeypatch):
    from mmengine.registry import HOOKS

    monkeypatch.setitem(HOOKS.module_dict, 'VarianceSyncHook', builtins.object)
    finding = doctor.check_registries()
    assert finding.state == doctor.PROBLEM
    assert 'VarianceSyncHook' in finding.found


def test_gpus_without_nccl(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 8)
    monkeypatch.setattr(torch.distributed, 'is_nccl_available', lambda: False)
    assert doctor.check_distributed().state == doctor.PROBLEM
    monkeypatch.setattr(torch.distributed, 'is_nccl_available', lambda: True)
    assert doctor.check_distributed().found == 'nccl, gloo; 8 GPU(s)'


def test_the_exit_status_tells_of_problems(monkeypatch, capsys):
    block(monkeypatch, 'pkg_resources')
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    assert 'PROBLEM  setuptools' in printed and '1 problem(s)' in printed
