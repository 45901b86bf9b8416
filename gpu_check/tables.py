"""Markdown tables from rows of results."""

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any

Column = tuple[str, Callable[[dict], Any]]
"""Header of a column, and a function from a row to the content of its cell."""


def table(columns: Sequence[Column], rows: Iterable[dict]) -> str:
    """Return a Markdown table with aligned columns."""
    lines = [[header for header, _ in columns]]
    lines += [[str(content(row)) for _, content in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ['-' * width for width in widths])
    return '\n'.join(
        f'| {" | ".join(map(str.ljust, line, widths))} |' for line in lines
    )


def median(key: str, digits: int, factor: float = 1) -> Callable[[dict], str]:
    """Return a function from a row to the median of one of its quantities."""
    return lambda row: f'{row[key]["median"] * factor:.{digits}f}'


CELL_COLUMNS: Sequence[Column] = (
    ('variant', itemgetter('variant')),
    ('measured', lambda row: 'yes' if row['measured'] else 'no'),
)


def megabytes(count: float) -> str:
    """Format bytes as MB (10^6 bytes)."""
    value = count / 1e6
    return f'{value:.1f}' if value >= 1 else f'{value:.5f}'.rstrip('0').rstrip('.')
