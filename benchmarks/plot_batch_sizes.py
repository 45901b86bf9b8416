"""Draw accuracy on the digits against the batch size, each method at its best rate.

    python benchmarks/plot_batch_sizes.py --out docs/images/batch_sizes.png

Reads the result of ``accuracy.py`` for Semantic FPN with AdamW, which has searched the
rates, and its repetition at the best rates. Nothing is trained.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agvm_mm import cli
from agvm_mm.report.figures.style import (
    BLACK,
    GREEN,
    VERMILION,
    save_figure,
    set_up_panel,
)
from benchmarks.paper.sensitivity_figure import METRIC_NAMES

RESULTS = Path(__file__).parent / 'results'
STUDY = RESULTS / 'accuracy_sem-fpn_adamw.json'
REPEATED = RESULTS / 'accuracy_sem-fpn_adamw_repeated.json'
TITLE = 'Semantic FPN on the digits, one epoch, each method at its best learning rate'
DODGE = 0.25
"""Distance of two methods at the same batch, in distances of two batches."""


LOOKS = {
    'adamw': ('AdamW alone', BLACK, '^'),
    'agvm-adamw': ('AGVM + AdamW', VERMILION, 's'),
    'adamw-x2 decode_head': ('AdamW, 2 x rate on the head', GREEN, 'o'),
}
"""Label, color and marker of each method."""


def plot_batch_sizes(result: Mapping, earlier: Sequence[dict] = ()) -> Figure:
    """Draw a marker for the mean over the seeds and a bar from lowest to highest.

    Args:
        result: A result of ``accuracy.py``.
        earlier: Rows of ``best`` of earlier runs, drawn hollow.

    Raises:
        ValueError: If the result has none of the methods.
    """
    rows = [row for row in result['best'] if row['method'] in LOOKS]
    if not rows:
        raise ValueError(f'there is nothing to draw: no run of {", ".join(LOOKS)}')
    batches = sorted({row['batch_size'] for row in rows})
    figure = Figure(figsize=(7.5, 4.2), layout='constrained')
    panel = figure.subplots()
    set_up_panel(panel)
    panel.grid(visible=False, axis='x')
    for number, (method, look) in enumerate(LOOKS.items()):
        shift = DODGE * (number - (len(LOOKS) - 1) / 2)
        for found, hollow in ((rows, False), (earlier, True)):
            own = {
                batches.index(row['batch_size']) + shift + hollow * DODGE / 4: row
                for row in found
                if row['method'] == method
            }
            if own:
                _draw_rows(panel, own, *look, hollow=hollow)
    images = result['scenes'] * result['epochs']
    labels = [f'{batch:,}\n({images // batch} updates)' for batch in batches]
    panel.set_xticks(range(len(batches)), labels)
    panel.set_xlim(-0.5, len(batches) - 0.5)
    panel.set_xlabel('batch size (images)')
    panel.set_ylabel(METRIC_NAMES[result['metric']])
    figure.legend(loc='outside lower center', ncols=2, frameon=False)
    return figure


def _draw_rows(
    panel: Axes,
    rows: Mapping[float, dict],
    label: str,
    color: str,
    marker: str,
    *,
    hollow: bool,
) -> None:
    """Draw a method's means with their ranges, by their place."""
    for place, row in rows.items():
        ends = row['lowest'], row['highest']
        panel.plot([place] * 2, ends, color=color, linewidth=4, alpha=0.3)
        if not hollow:
            panel.annotate(
                f'{row["mean"]:.1f}',
                (place, row['mean']),
                xytext=(-7, 0),
                textcoords='offset points',
                ha='right',
                va='center',
                fontsize=9,
            )
    panel.plot(
        list(rows),
        [row['mean'] for row in rows.values()],
        color=color,
        marker=marker,
        linestyle='none',
        markersize=6,
        markerfacecolor='white' if hollow else color,
        label=None if hollow else label,
        gid=f'{"earlier" if hollow else "result"} {label}',
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the results and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_figure_flags(parser, out='batch_sizes.png')
    args = parser.parse_args(arguments)
    study, repeated = (json.loads(file.read_text()) for file in (STUDY, REPEATED))
    figure = plot_batch_sizes(repeated, study['best'])
    figure.suptitle(args.title or TITLE, fontsize=11)
    save_figure(figure, args.out)
    print(*args.out)


if __name__ == '__main__':
    main()
