"""Page of the documentation about stock configs with AGVM."""

from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import import_module

from stock import families, stock
from stock.families import IMAGES, MICRO_BATCHES, Family, Update, by_family
from stock.stock import TOOLBOXES, Result

PAGE = """\
# Stock configs

`make zoo` writes this page. It adds the lines of the [README](../README.md) to
each config of {versions} that trains something ({configs}),
builds the model without memory for weights and compares its optimizer with the one that
MMEngine builds without AGVM: for each parameter learning rate, weight decay, momentum
or betas and all other settings of its group; the class of the optimizer, clipping,
accumulation and precision."""
UPDATE = f"""\
A model of each type gets random weights, few boxes, no clipping, and one update of
{MICRO_BATCHES} micro-batches of {IMAGES} random images on the CPU: once with
MMEngine's optimizer wrapper and once with AGVM's, which measures. The gradients must be
equal to the last bit. `make test` repeats some of these updates."""
MODULES = """\
The [default split](extending.md#the-split-into-modules) of each type of model. The
example is the smallest config that trains on the CPU. `make test` builds the examples
and compares their modules and optimizers."""


def page(results: list[Result], updates: Mapping[Family, Update]) -> str:
    """Return the page of the documentation, in Markdown."""
    versions = ' and '.join(
        f'{title} {import_module(name).__version__}'
        for name, title in TOOLBOXES.items()
    )
    parts = [
        PAGE.format(versions=versions, configs=len(results)),
        '\n'.join(_outcome_table(results)),
        '## Not the same',
        '\n'.join(_reason_table(results)),
        '## One update of each model',
        UPDATE,
        '\n'.join(_update_table(updates)),
        '## Modules of each model',
        MODULES,
        '\n'.join(_family_table(results, updates)),
    ]
    return '\n\n'.join(parts) + '\n'


def _outcome_table(results: list[Result]) -> Iterator[str]:
    counts = Counter((r.outcome, r.config.partition('::')[0]) for r in results)
    yield f'| | {" | ".join(TOOLBOXES.values())} | |'
    yield '| --- | --- | --- | --- |'
    for outcome, meaning in stock.OUTCOMES.items():
        numbers = ' | '.join(str(counts[outcome, toolbox]) for toolbox in TOOLBOXES)
        yield f'| {outcome} | {numbers} | {meaning} |'


def _update_table(updates: Mapping[Family, Update]) -> Iterator[str]:
    counts = Counter(update.outcome for update in updates.values())
    yield '| one update | families | |'
    yield '| --- | --- | --- |'
    for outcome, meaning in families.OUTCOMES.items():
        yield f'| {outcome} | {counts[outcome]} | {meaning} |'


def _reason_table(results: list[Result]) -> Iterator[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.outcome != 'same':
            key = (result.outcome, result.reason)
            reasons.setdefault(key, []).append(result.config)
    yield '| | configs | reason | for example |'
    yield '| --- | --- | --- | --- |'
    for key in sorted(reasons, key=lambda key: (key[0], -len(reasons[key]))):
        outcome, reason = key
        example = reasons[key][0]
        yield f'| {outcome} | {len(reasons[key])} | `{_code(reason)}` | `{example}` |'


def _family_table(
    results: list[Result], updates: Mapping[Family, Update]
) -> Iterator[str]:
    yield '| model | modules | configs | for example | one update |'
    yield '| --- | --- | --- | --- | --- |'
    for family, configs in by_family(results).items():
        update = updates[family]
        yield (
            f'| {family.model} | {", ".join(family.modules)} | {len(configs)} '
            f'| `{update.config}` | {update_cell(update)} |'
        )


def update_cell(update: Update) -> str:
    """Return an update in a few words of Markdown."""
    if update.reason:
        return f'{update.outcome}: `{_code(update.reason)}`'
    idle = f'; no gradient in {", ".join(update.idle)}' if update.idle else ''
    return f'{update.outcome}, {update.size} px{idle}'


def _code(text: str) -> str:
    """Return a text for a cell of a table, between backquotes."""
    return text.replace('|', '\\|').replace('`', "'")
