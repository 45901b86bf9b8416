"""The paper's tables and the configs that reproduce them."""

import re
from dataclasses import dataclass

TRAIN_IMAGES = dict(coco=117_266, ade20k=20_210)
"""Training images of each data set; of COCO, those with annotations."""


@dataclass(frozen=True)
class Method:
    """One way to train, as configs, tables and figures name it.

    Args:
        title: Name in tables and metafiles.
        optimizer: Type of the optimizer in a config.
        column: Name of its column in the paper's tables, for plain methods whose
            name there does not depend on the table.
    """

    title: str
    optimizer: str
    column: str | None = None


METHODS = {
    'sgd': Method('SGD', 'SGD'),
    'agvm-sgd': Method('SGD + AGVM', 'SGD'),
    'lars': Method('LARS', 'BaselineLARS', 'LARS'),
    'adamw': Method('AdamW', 'AdamW', 'AdamW'),
    'agvm-adamw': Method('AdamW + AGVM', 'AdamW'),
    'lamb': Method('LAMB', 'BaselineLAMB', 'LAMB'),
    'pmd-lamb': Method('PMD-LAMB', 'PMDLAMB', 'PMD-LAMB'),
}
"""Methods by their name in config files."""

CONFIG_NAME = re.compile(
    rf'(?P<model>.+)_(?P<method>{"|".join(METHODS)})_b(?P<batch>\d+)'
    r'_(?P<length>\d+(?:e|k|iters))_(?P<dataset>[^_]+)'
)
"""``{model}_{method}_b{total batch}_{length}_{data set}``."""


@dataclass(frozen=True)
class ConfigName:
    """What the name of a config file tells.

    Args:
        model: Model, backbone and neck, such as 'faster-rcnn_r50_fpn'.
        method: A key of :data:`METHODS`.
        batch: Images of one update.
        length: Epochs or updates, such as '16e', '20k' or '500iters'.
        dataset: Data set, such as 'coco' or 'ade20k-512x512'.
    """

    model: str
    method: str
    batch: int
    length: str
    dataset: str

    def __str__(self) -> str:
        return (
            f'{self.model}_{self.method}_b{self.batch}_{self.length}_{self.dataset}'
        )


def parse_config_name(name: str) -> ConfigName | None:
    """Return what a config's file name (without its ending) tells, or None."""
    match = CONFIG_NAME.fullmatch(name)
    if match is None:
        return None
    return ConfigName(**match.groupdict() | dict(batch=int(match['batch'])))
