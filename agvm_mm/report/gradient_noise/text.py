"""Result of ``tools/noise_scale.py`` as text and as a JSON file."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agvm_mm.method.noise_scale import ALL
from agvm_mm.report.gradient_noise.intervals import (
    BATCHES,
    CONFIDENCE,
    Estimate,
    NoiseReport,
)

VERSION = 1
"""Version of the JSON file."""
UNRESOLVED = 'not resolved'
KEY = (
    f'Phi or mu, then its interval of {CONFIDENCE:.0%}.\n'
    'm: measured on groups of so many images; p: predicted from the noise scale of all '
    'images. Both are of updates with micro-batches as large as the replicas.\n'
    'Updates saved, images added: against half the batch, with the learning rate tuned '
    'for each.'
)


def describe(report: NoiseReport, gradient: str, notes: Sequence[str] = ()) -> str:
    """Format a report as text, with what was measured and what a reader must know."""
    modules = [name for name in report.modules if name != ALL]
    others = [name for name in modules if name != report.anchor]
    rows = [row for row in report.batches if row.batch >= BATCHES[0]]
    columns = 'module', 'noise scale (images)', 'interval', 'signal', 'noise'
    tables = [table(columns, (_scale(report, name) for name in report.modules))]
    for value, names in (('phi', modules), ('mu', others)):
        cells = (
            [
                f'{row.batch:,}',
                'm' if row.measured else 'p',
                *(_interval(getattr(row, value)[name]) for name in names),
            ]
            for row in rows
        )
        tables.append(table((f'{value} at batch', '', *names), cells))
    if report.modules[ALL].noise_scale:
        cells = (
            [f'{row.batch:,}', f'{row.saved_updates:.0%}', f'{row.extra_images:.0%}']
            for row in rows
        )
        tables.append(table(('batch', 'updates saved', 'images added'), cells))
    first = [
        f'{report.images:,} images in replicas of {report.images_per_replica}, '
        f'{report.blocks} blocks; measured: {gradient}',
        *(f'NOTE  {note}' for note in notes),
    ]
    return '\n\n'.join(['\n'.join(first), *tables, KEY, reading(report)])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table without lines, as wide as its cells, also in a terminal."""
    grid = Table(*header, box=None, padding=(0, 2, 0, 0), header_style='')
    for row in rows:
        grid.add_row(*row)
    console = Console(width=1000, color_system=None, markup=False, emoji=False)
    with console.capture() as text:
        console.print(grid, highlight=False)
    return '\n'.join(line.rstrip() for line in text.get().splitlines())


def _scale(report: NoiseReport, name: str) -> list[str]:
    signal, noise, scale, low = report.modules[name]
    value, ends = UNRESOLVED, f'above {_count(low)}' if low else '-'
    if scale:
        value = _count(scale.value)
        ends = f'{_count(scale.low)} to {_count(scale.high)}'
    size = f'{signal:.3g}' if signal > 0 else UNRESOLVED
    return [name, value, ends, size, f'{noise:.3g}']


def _interval(found: Estimate | None) -> str:
    if found is None:
        return UNRESOLVED
    return f'{found.value:.3f} ({found.low:.2f}-{found.high:.2f})'


def _count(images: float) -> str:
    """Return a number of images, rounded to about two digits."""
    if images < 10:
        return f'{images:.2g}'
    return f'{round(images, 1 - math.floor(math.log10(images))):,.0f}'


def reading(report: NoiseReport) -> str:
    """Return one sentence that explains the noise scale."""
    _, _, scale, low = report.modules[ALL]
    if scale is None:
        known = 'not known'
        if low:
            known = f'above {_count(low)} images, and smaller batches are mostly noise'
        return (
            f'{report.images:,} images do not resolve the noise scale of the network; '
            f'it is {known}. Give more --images.'
        )
    return (
        f'At this checkpoint batches well below {_count(scale.value)} images can be '
        'doubled for almost half the updates, and above that a double batch mostly '
        'costs more images.'
    )


def write_json(path: Path, report: NoiseReport, **context: Any) -> None:
    """Write the report and further entries, in folders that may not exist yet."""
    content = dict(
        version=VERSION, confidence=CONFIDENCE, **context, **plain(vars(report))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, allow_nan=False)
    path.write_text(text + '\n', encoding='utf-8')


def plain(value: Any) -> Any:
    """Return dicts in place of named tuples, and None (null) for infinite numbers."""
    if hasattr(value, '_asdict'):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isinf(value) else value
