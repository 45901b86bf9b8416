"""Draw accuracy on the digits against the batch size, each method at its best rate.

    python benchmarks/plot_batch_sizes.py --out docs/images/batch_sizes.png

Reads the results of ``accuracy.py`` for AdamW: the first studies of both models, which
searched the rates, and their repetition by later code. Nothing is trained.
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
MODELS = {'sem-fpn': 'Semantic FPN', 'faster-rcnn': 'Faster R-CNN'}
TITLE = 'Digits, each method at its best learning rate'
DODGE = 0.25
"""Distance of two methods at the same batch, in distances of two batches."""

HEAD = ('AdamW, 2 x rate on the head', GREEN, 'o')
LOOKS = {
    'adamw': ('AdamW alone', BLACK, '^'),
    'agvm-adamw': ('AGVM + AdamW', VERMILION, 's'),
    'adamw-x2 decode_head': HEAD,
    'adamw-x2 roi_head': HEAD,
}
"""Label, color and marker of each method."""
LABELS = [look[0] for look in dict.fromkeys(LOOKS.values())]


def plot_batch_sizes(results: Sequence[tuple[Mapping, Sequence[dict]]]) -> Figure:
    """Draw a marker for the mean over the seeds and a bar from lowest to highest.

    Args:
        results: For each panel, a result of ``accuracy.py``, and rows of ``best`` of
            earlier runs at the same batches, which are drawn hollow.

    Raises:
        ValueError: If a result has none of the methods.
    """
    figure = Figure(figsize=(7.5, 0.8 + 3.2 * len(results)), layout='constrained')
    panels = figure.subplots(len(results), squeeze=False)[:, 0]
    labeled = {}
    for panel, (result, earlier) in zip(panels, results, strict=True):
        _draw_panel(panel, result, earlier)
        handles, labels = panel.get_legend_handles_labels()
        labeled |= dict(zip(labels, handles, strict=True))
    figure.legend(
        labeled.values(),
        labeled,
        loc='outside lower center',
        ncols=len(labeled),
        frameon=False,
    )
    return figure


def _draw_panel(panel: Axes, result: Mapping, earlier: Sequence[dict]) -> None:
    rows = [row for row in result['best'] if row['method'] in LOOKS]
    if not rows:
        raise ValueError(f'there is nothing to draw: no run of {", ".join(LOOKS)}')
    batches = sorted({row['batch_size'] for row in rows})
    set_up_panel(panel)
    panel.grid(visible=False, axis='x')
    for method, look in LOOKS.items():
        shift = DODGE * (LABELS.index(look[0]) - (len(LABELS) - 1) / 2)
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
    panel.set_title(MODELS[result['model']], fontsize=11)


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
    results = []
    for model in MODELS:
        names = f'accuracy_{model}_adamw', f'accuracy_{model}_adamw_repeated'
        files = (RESULTS / f'{name}.json' for name in names)
        study, repeated = (json.loads(file.read_text()) for file in files)
        results.append((repeated, study['best']))
    figure = plot_batch_sizes(results)
    figure.suptitle(args.title or TITLE, fontsize=11)
    save_figure(figure, args.out)
    print(*args.out)


if __name__ == '__main__':
    main()
