"""mim: the wheel has the files that it needs, and it installs and trains."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from demo import pretrain_backbone, write_digits

ROOT = Path(__file__).parents[2]
SOURCES = (
    'LICENSE',
    'MANIFEST.in',
    'README.md',
    'agvm_mm',
    'configs',
    'model-index.yml',
    'pyproject.toml',
    'setup.py',
    'tools',
)


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository, into which a build writes."""
    folder = tmp_path_factory.mktemp('source')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            skip = shutil.ignore_patterns('__pycache__')
            shutil.copytree(ROOT / name, folder / name, ignore=skip)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope='module')
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the package as pip would install it."""
    # A file from an earlier build that no longer exists in the repository.
    stale = source / 'build/lib/agvm_mm/.mim/configs/digits/gone.py'
    stale.parent.mkdir(parents=True)
    stale.touch()
    folder = tmp_path_factory.mktemp('wheel')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation']
        + ['--no-index', '-q', '-w', folder, source],
        check=True,
    )
    (wheel,) = folder.glob('agvm_mm-*.whl')
    with zipfile.ZipFile(wheel) as archive:
        # Files, not links into the folder that they were built from.
        assert all((item.external_attr >> 28) in (0, 8) for item in archive.infolist())
        archive.extractall(folder / 'site')
    return folder / 'site' / 'agvm_mm'


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def test_configs_are_installed_unchanged(installed: Path, source: Path):
    configs = installed / '.mim' / 'configs'
    assert files(configs) == files(source / 'configs')
    for name in files(configs):
        assert (configs / name).read_bytes() == (source / 'configs' / name).read_bytes()
    # mim finds a config by its name alone.
    runs = [path.name for path in configs.glob('[!_]*/*.py')]
    assert runs and len(set(runs)) == len(runs)
    (path,) = configs.glob('digits/faster-rcnn*_agvm-sgd_*.py')
    assert Config.fromfile(path).optim_wrapper.type == 'AGVMOptimWrapper'


def test_model_index_lists_installed_configs(installed: Path):
    mim = installed / '.mim'
    index = yaml.safe_load((mim / 'model-index.yml').read_text())
    for metafile in index['Import']:
        for model in yaml.safe_load((mim / metafile).read_text())['Models']:
            assert (mim / model['Config']).is_file(), model['Name']


def test_tools_are_installed(installed: Path, source: Path):
    tools = files(installed / '.mim' / 'tools')
    expected = {name for name in files(source / 'tools') if not name.startswith('dev/')}
    assert tools == expected
    # The extraction drops the mode, pip does not.
    script = installed / '.mim/tools/dist_train.sh'
    done = subprocess.run(['bash', script], capture_output=True, text=True)
    assert f'usage: {script} CONFIG' in done.stderr


@pytest.fixture(scope='module')
def site(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder into which `mim install .` has installed."""
    # Not one of the extras: its requirements would break the environment.
    pytest.importorskip('mim')
    folder = tmp_path_factory.mktemp('site')
    subprocess.run(
        [sys.executable, '-m', 'mim', 'install', '.', '--target', folder]
        # The requirements are installed; no network is used.
        + ['--no-deps', '--no-build-isolation', '--no-index', '-q'],
        cwd=source,
        env=dict(os.environ, MMCV_BASE_URL='http://127.0.0.1:9', PIP_RETRIES='0'),
        check=True,
    )
    return folder


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('data') / 'digits'
    write_digits(folder, num_train=16, num_val=4, progress=False)
    pretrain_backbone(folder, num_patches=64, epochs=1, progress=False)
    return folder


@pytest.mark.parametrize('ranks', [1, pytest.param(2, marks=pytest.mark.evidence)])
def test_mim_installs_and_trains(site: Path, data: Path, tmp_path: Path, ranks: int):
    settings = {
        'train_dataloader.dataset.data_root': f'{data}/',
        'val_dataloader.dataset.data_root': f'{data}/',
        'val_evaluator.ann_file': f'{data}/annotations/instances_val.json',
        'model.backbone.init_cfg.checkpoint': f'{data}/resnet18_w16.pth',
        'train_dataloader.batch_size': 4,
        'train_cfg.total_batch_size': 8,
        'train_cfg.max_epochs': 1,
        'default_hooks.agvm.begin': 0,
        'default_hooks.logger.interval': 1,
    }
    launcher = ['--launcher', 'pytorch', '--gpus', '2'] if ranks == 2 else []
    done = subprocess.run(
        # Only the name, from a folder without anything of this repository.
        [sys.executable, '-m', 'mim', 'train', 'agvm_mm']
        + ['faster-rcnn_r18_w16_fpn_agvm-sgd_b256_10e_digits.py', *launcher]
        + ['--work-dir', tmp_path / 'run', '--cfg-options']
        + [f'{key}={value}' for key, value in settings.items()],
        cwd=tmp_path,
        env=dict(
            os.environ,
            PYTHONPATH=str(site),
            OMP_NUM_THREADS='1',
            CUDA_VISIBLE_DEVICES='',
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert f'{site}/agvm_mm/.mim/tools/train.py' in done.stdout
    assert f'batch     8 images = {ranks} rank(s)' in done.stdout
    (log,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum('agvm/phi_backbone' in row for row in rows) == 2
    assert 'coco/bbox_mAP' in rows[-1]


def test_source_distribution_is_complete(source: Path, tmp_path: Path):
    code = (
        'from setuptools import build_meta; import sys; '
        'build_meta.build_sdist(*sys.argv[1:])'
    )
    subprocess.run(
        [sys.executable, '-c', code, tmp_path],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.glob('agvm_mm-*.tar.gz')
    with tarfile.open(archive) as tar:
        names = {name.partition('/')[2] for name in tar.getnames()}
    for folder in ('agvm_mm', 'configs', 'tools'):
        assert {f'{folder}/{name}' for name in files(source / folder)} <= names
    assert set(SOURCES) <= names


def test_editable_installation_has_no_copies(source: Path, tmp_path: Path):
    code = (
        'from setuptools import build_meta; import sys; '
        'build_meta.build_editable(*sys.argv[1:])'
    )
    subprocess.run(
        [sys.executable, '-c', code, tmp_path],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob('agvm_mm-*.whl')
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if '.mim' in name]
    assert not (source / 'agvm_mm' / '.mim').exists()
