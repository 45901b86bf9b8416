"""Metadata of the package, and the import without the toolboxes."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from installed import packages_by_module

from agvm_mm.version import __version__

ROOT = Path(__file__).resolve().parents[1]
NO_CORE_REQUIREMENT = {'mmcv', 'mmdet', 'mmsegmentation', 'mmengine'}


def requirements():
    """Return (name, extra or None) of every requirement in the installed metadata."""
    found = []
    for line in importlib.metadata.requires('agvm_mm'):
        name = re.match(r'[\w.-]+', line).group().lower()
        extra = re.search(r'extra == [\'"](\w+)[\'"]', line)
        found.append((name, extra and extra.group(1)))
    return found


def test_version_is_in_one_place():
    assert importlib.metadata.version('agvm_mm') == __version__
    for name in ('setup.py', 'pyproject.toml', 'agvm_mm/__init__.py'):
        assert __version__ not in (ROOT / name).read_text(encoding='utf-8')


def test_only_torch_and_numpy_are_required():
    """Forks ship the same modules under other dist names."""
    core = {name for name, extra in requirements() if extra is None}
    assert core == {'torch', 'numpy'}


def test_extras_hold_what_they_are_for():
    extras = importlib.metadata.metadata('agvm_mm').get_all('Provides-Extra')
    names = {
        'detection',
        'segmentation',
        'demo',
        'baselines',
        'docs',
        'test',
        'all',
    }
    assert set(extras) == names
    by_extra = {e: {n for n, of in requirements() if of == e} for e in extras}
    assert 'mmdet' in by_extra['detection']
    assert {'mmsegmentation', 'ftfy', 'regex'} <= by_extra['segmentation']
    assert by_extra['all'] == set().union(*by_extra.values())
    # pip would build it without torch and so without operators.
    assert 'mmcv' not in by_extra['all']


def test_imports_are_of_packages_that_every_user_has():
    """Either toolbox suffices; what few users need is imported when it is used."""
    owners = packages_by_module()

    def required_by(module):
        lines = importlib.metadata.requires(owners[module][0])
        needed = [line for line in lines if 'extra' not in line]
        return {re.match(r'[\w.-]+', line).group() for line in needed}

    present = {'torch', *owners['mmengine']} | required_by('mmengine')
    present |= required_by('mmdet') & required_by('mmseg')
    own = {'agvm_mm', *sys.stdlib_module_names}
    files = [*ROOT.glob('agvm_mm/**/*.py'), *ROOT.glob('tools/*.py')]
    assert len(files) > 50
    for path in [*files, *ROOT.glob('tools/analysis/*.py')]:
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in getattr(node, 'names', ())]
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in {name.partition('.')[0] for name in names} - own:
                assert present & set(owners[name]), (path.name, name)


def test_python_versions_are_limited_to_supported_ones():
    metadata = importlib.metadata.metadata('agvm_mm')
    assert set(metadata['Requires-Python'].split(',')) == {'>=3.10', '<3.13'}


@pytest.mark.parametrize('blocked', ['mmcv mmdet mmseg', 'mmdet', 'mmseg'])
def test_imports_without_the_toolboxes(blocked):
    """torch and mmengine are enough, and the import replaces nothing in them."""
    code = f"""
import sys
for name in {blocked.split()!r}:
    sys.modules[name] = None  # makes `import name` raise ImportError
import torch, mmengine.optim
load, step = torch.load, mmengine.optim.OptimWrapper.update_params
import agvm_mm
assert torch.load is load
assert mmengine.optim.OptimWrapper.update_params is step
print(agvm_mm.__version__)
"""
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == __version__


def test_committed_files_name_no_machine_paths():
    """No file names a folder of the machine that wrote it."""
    files = subprocess.run(
        ['git', 'ls-files', '*.py', '*.sh', '*.md', '*.txt', '*.toml', 'Makefile'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if files.returncode != 0 or not files.stdout:
        pytest.skip('not a git checkout')
    pattern = re.compile(r'(?<![\w.])/(?:home|root|opt|Users)/\w')
    bad = [
        name
        for name in files.stdout.split()
        if (ROOT / name).exists()
        and pattern.search((ROOT / name).read_text(encoding='utf-8'))
    ]
    assert not bad


FIRST_IMPORT = """
import os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ('torch', 'mmengine'):
            print(name, repr(os.environ.get('CUDA_VISIBLE_DEVICES')))

sys.meta_path.insert(0, Finder())
import conftest
"""


def test_gpus_are_hidden_before_torch_and_mmengine_ask_for_them():
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parent))
    environment.pop('CUDA_VISIBLE_DEVICES', None)
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', FIRST_IMPORT],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )
    assert done.stdout.split('\n')[:2] == ["torch ''", "mmengine ''"], done.stderr
