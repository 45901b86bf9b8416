"""Result of ``tools/noise_scale.py`` as text and as a JSON file."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    'images.\n'
    'Updates saved, images added: against half the batch, with the learning rate tuned '
    'for each.'
)


def describe(report: NoiseReport, gradient: str, notes: Sequence[str] = ()) -> str:
    """Format a report as text.

    Args:
        report: The report.
        gradient: What was measured, such as 'gradient' or 'gradient / (sqrt(v) + eps)'.
        notes: What a reader must know.
    """
    modules = [name for name in report.modules if name != ALL]
    others = [name for name in modules if name != report.anchor]
    tables = [
        _scale_table(report),
        _value_table(report, 'phi', modules),
        _value_table(report, 'mu', others),
    ]
    if report.noise_scales[ALL]:
        tables.append(_cost_table(report))
    lines = [
        f'{report.images:,} images in replicas of {report.images_per_replica}, '
        f'{report.blocks} blocks; measured: {gradient}',
        *(f'NOTE  {note}' for note in notes),
        *(line for table in tables for line in ('', *_format(table))),
        '',
        KEY,
        '',
        reading(report),
    ]
    return '\n'.join(lines)


def _scale_table(report: NoiseReport) -> Iterator[list[str]]:
    yield ['module', 'noise scale (images)', 'interval', 'signal', 'noise']
    for name, (signal, noise) in report.modules.items():
        scale, low = report.noise_scales[name], report.lower_bounds[name]
        value, ends = UNRESOLVED, f'above {_count(low)}' if low else '-'
        if scale:
            value = _count(scale.value)
            ends = f'{_count(scale.low)} to {_count(scale.high)}'
        size = f'{signal:.3g}' if signal > 0 else UNRESOLVED
        yield [name, value, ends, size, f'{noise:.3g}']


def _value_table(
    report: NoiseReport, value: str, names: Sequence[str]
) -> Iterator[list[str]]:
    """Yield the rows of a table of Phi or mu, by batch."""
    yield [f'{value} at batch', '', *names]
    for row in report.rows:
        if row.batch >= BATCHES[0]:
            found = getattr(row, value)
            how = 'm' if row.measured else 'p'
            yield [f'{row.batch:,}', how, *(_interval(found[name]) for name in names)]


def _cost_table(report: NoiseReport) -> Iterator[list[str]]:
    yield ['batch', 'updates saved', 'images added']
    for row in report.rows:
        if row.batch >= BATCHES[0]:
            shares = (row.saved_updates, row.extra_images)
            yield [f'{row.batch:,}', *map(_share, shares)]


def _format(table: Iterator[list[str]]) -> list[str]:
    rows = list(table)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        '  '.join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _interval(found: Estimate | None) -> str:
    if found is None:
        return UNRESOLVED
    return f'{found.value:.3f} ({found.low:.2f}-{found.high:.2f})'


def _share(share: float | None) -> str:
    return UNRESOLVED if share is None else f'{share:.0%}'


def _count(images: float) -> str:
    """Return a number of images, rounded to about two digits."""
    if images < 10:
        return f'{images:.2g}'
    return f'{round(images, 1 - math.floor(math.log10(images))):,.0f}'


def reading(report: NoiseReport) -> str:
    """Return one sentence that a newcomer understands."""
    scale = report.noise_scales[ALL]
    if scale is None:
        low, known = report.lower_bounds[ALL], 'not known'
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


def as_json(report: NoiseReport, **context: Any) -> dict[str, Any]:
    """Return the content of the JSON file; unresolved values are null.

    Args:
        report: The report.
        context: Further entries.
    """
    return dict(
        version=VERSION,
        **context,
        images=report.images,
        images_per_replica=report.images_per_replica,
        blocks=report.blocks,
        confidence=CONFIDENCE,
        anchor=report.anchor,
        ratio_bounds=list(report.ratio_bounds),
        modules={
            name: dict(
                signal=each.signal,
                noise=each.noise,
                noise_scale=_estimate(report.noise_scales[name]),
                lower_bound=report.lower_bounds[name],
            )
            for name, each in report.modules.items()
        },
        batches=[
            dict(
                batch=row.batch,
                measured=row.measured,
                phi=_estimates(row.phi),
                mu=_estimates(row.mu),
                saved_updates=row.saved_updates,
                extra_images=row.extra_images,
            )
            for row in report.rows
        ],
    )


def _estimates(found: Mapping[str, Estimate | None]) -> dict[str, dict | None]:
    return {name: _estimate(each) for name, each in found.items()}


def _estimate(found: Estimate | None) -> dict[str, float | None] | None:
    if found is None:
        return None
    ends = (end if math.isfinite(end) else None for end in found)
    return dict(zip(('value', 'low', 'high'), ends, strict=True))


def write_json(path: Path, report: NoiseReport, **context: Any) -> None:
    """Write the JSON file; missing folders are created. See :func:`as_json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(report, **context), indent=2, allow_nan=False)
    path.write_text(text + '\n', encoding='utf-8')
