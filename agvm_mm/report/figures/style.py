"""Look of modules and lines, the same in every figure."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The palette of Okabe and Ito, for all kinds of color vision. Dashes and markers
# distinguish curves in print.
BLUE, VERMILION, GREEN, PURPLE = '#0072B2', '#D55E00', '#009E73', '#CC79A7'
ORANGE, SKY_BLUE, BLACK = '#E69F00', '#56B4E9', '#000000'
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE, BLACK)
# Of Paul Tol's muted palette, for models with more modules.
COLORS += ('#332288', '#882255', '#999933', '#117733', '#AA4499')
DASHES = ('-', '--', '-.', ':')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')


def module_style(number: int) -> dict[str, Any]:
    """Return the look of the curve of the module with this number."""
    return dict(
        color=COLORS[number % len(COLORS)],
        linestyle=DASHES[number % len(DASHES)],
        marker=MARKERS[number % len(MARKERS)],
        linewidth=1.8,
    )


def set_up_panel(panel: Axes) -> None:
    """Add a grid to a panel and remove its upper and right edges."""
    panel.grid(alpha=0.3)
    panel.spines[['top', 'right']].set_visible(False)


def save_figure(figure: Figure, path: str | Path | Iterable[str | Path]) -> None:
    """Write a figure to one or several files, whose suffixes give the formats.

    Missing folders are created.
    """
    for file in [path] if isinstance(path, str | Path) else path:
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=130)
