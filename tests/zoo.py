"""The configs as the tests see them: collected from the folders, read once."""

import re
from functools import cache, lru_cache
from pathlib import Path

from mmengine.config import Config
from mmengine.config import utils as config_utils

ROOT = Path(__file__).resolve().parents[1]
# For a base `mmdet::...` MMEngine reads the metafiles of all of MMDetection's models,
# at every config again; once is enough here.
config_utils.load = lru_cache(config_utils.load)

LEAVES = sorted(
    str(path.relative_to(ROOT / 'configs').with_suffix(''))
    for path in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in path.parts
)
# The embedded twins have a recipe of their own.
ZOO = [leaf for leaf in LEAVES if not leaf.startswith('digits/')]
NAME = re.compile(
    r'(?P<model>.+)_(?P<method>(agvm-)?(sgd|adamw)|lars|lamb|pmd-lamb)'
    r'_b(?P<batch>\d+)_(?P<length>\d+(e|k|iters))_(?P<dataset>[^_]+)$'
)


@cache
def load(leaf):
    return Config.fromfile(ROOT / 'configs' / f'{leaf}.py')


def told(leaf):
    """What a file name tells: model, method, batch, length and data set."""
    match = NAME.match(leaf.split('/')[-1])
    assert match, f'{leaf} does not tell model, method, batch, length and data set'
    return dict(match.groupdict(), batch=int(match['batch']))


def by_model(leaves):
    """One leaf for each model, those with AGVM first."""
    chosen = {}
    for leaf in sorted(leaves, key=lambda leaf: '_agvm-' not in leaf):
        chosen.setdefault(repr(load(leaf).model), leaf)
    return sorted(chosen.values())
