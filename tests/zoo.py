"""Configs of the repository: collected from the folders, each read once."""

from functools import cache
from pathlib import Path

from mmengine.config import Config

from benchmarks.paper.tables import ConfigName, parse_config_name

ROOT = Path(__file__).resolve().parents[1]
LEAVES = sorted(
    str(path.relative_to(ROOT / 'configs').with_suffix(''))
    for path in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in path.parts
)
# The digits have a recipe of their own: see twins.py.
ZOO = [leaf for leaf in LEAVES if not leaf.startswith('digits/')]
# The paper's schedules, from its tables.
COCO_UPDATES_PER_EPOCH = {
    32: 3665,
    256: 459,
    512: 230,
    960: 123,
    1024: 115,
    1536: 77,
    4096: 29,
    10240: 12,
}
ADE20K_UPDATES = {
    32: 160_000,
    256: 20_000,
    512: 10_000,
    1024: 5000,
    2048: 2500,
    10240: 500,
}
OPTIMIZERS = {
    'sgd': 'SGD',
    'adamw': 'AdamW',
    'lars': 'BaselineLARS',
    'lamb': 'BaselineLAMB',
    'pmd-lamb': 'PMDLAMB',
}


@cache
def load(leaf: str) -> Config:
    """Read a leaf. Callers share the config and must not change it."""
    return Config.fromfile(ROOT / 'configs' / f'{leaf}.py')


def source_of(leaf: str) -> str:
    """Return the text of a leaf's file."""
    return (ROOT / 'configs' / f'{leaf}.py').read_text(encoding='utf-8')


def name_of(leaf: str) -> ConfigName:
    """Return the parts of a leaf's name."""
    name = parse_config_name(leaf.split('/')[-1])
    assert name, f'{leaf} does not name model, method, batch, length and data set'
    return name


def folder_of(leaf: str) -> str:
    """Return the folder of a leaf: its architecture."""
    return leaf.split('/')[0]


def epoch_of(leaf: str) -> int | None:
    """Return the updates of an epoch; None on ADE20K, which has no epochs."""
    name = name_of(leaf)
    if name.dataset == 'digits':
        return 16
    return COCO_UPDATES_PER_EPOCH[name.batch] if name.dataset == 'coco' else None


def updates_of(leaf: str) -> int:
    """Return the updates of a run."""
    epoch = epoch_of(leaf)
    if epoch is None:
        return ADE20K_UPDATES[name_of(leaf).batch]
    return epoch * load(leaf).train_cfg.max_epochs


def warmup_of(leaf: str) -> int:
    """Return the updates of the exponential warm-up."""
    schedulers = load(leaf).param_scheduler
    (warmup,) = (one for one in schedulers if one.type == 'ExponentialWarmupLR')
    assert warmup.get('begin', 0) == 0
    assert warmup.start_factor == 1e-3
    if not warmup.by_epoch:
        return warmup.end
    assert warmup.convert_to_iter_based
    return warmup.end * epoch_of(leaf)
