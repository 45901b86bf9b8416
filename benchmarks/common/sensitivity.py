"""Search of the best learning rates, and comparison of methods pair by pair.

A result is a dict with ``run`` (among its keys ``batch_size``, ``seed`` and
``variant``, which is '' for the plain optimizer), ``method``, ``lr`` and ``value``, in
percent, None if the run diverged.
"""

import statistics
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from operator import itemgetter

from common import report

Run = Hashable


def score(result: dict) -> float:
    """Return the value of a result, lower than any other if the run diverged."""
    return -1.0 if result['value'] is None else result['value']


def missing_runs(
    make: Callable[[str, int, int], Run],
    variants: Sequence[str],
    seeds: Sequence[int],
    results: Mapping[Run, dict],
) -> list[Run]:
    """Return the runs to train next, pairs next to each other; none at the end.

    With the first seed all variants get the same rates. With each of the others a
    variant gets its best rate, that of the plain optimizer, and the neighbors of both;
    the plain optimizer gets those of all variants, so that every run has its pair.

    Args:
        make: Returns the run of a variant, a step of the learning rate and a seed.
        variants: Variants to compare; the first one is the plain optimizer.
        seeds: The first one searches the best rates.
        results: Results by run.
    """
    plain, *_ = variants
    first, *others = seeds

    def lacking(steps: Mapping[str, Collection[int]], seed: int) -> list[Run]:
        # From the middle: the pairs that matter come first.
        runs = [
            make(variant, step, seed)
            for step in sorted(steps[plain], key=abs)
            for variant in variants
            if step in steps[variant]
        ]
        return [run for run in runs if run not in results]

    steps, wanted = set(), {-1, 0, 1}
    while wanted - steps:
        steps |= wanted
        if runs := lacking(dict.fromkeys(variants, steps), first):
            return runs
        near: dict[str, set[int]] = {}
        for variant in variants:
            scores = {
                step: score(results[make(variant, step, first)]) for step in steps
            }
            best = max(scores, key=scores.get)
            near[variant] = {best - 1, best, best + 1}
        wanted = set().union(*near.values())
    near = {variant: near[variant] | near[plain] for variant in variants}
    near[plain] = wanted
    for seed in others:
        if runs := lacking(near, seed):
            return runs
    return []


def summarize(results: Iterable[dict]) -> list[dict]:
    """Return the best learning rate of each method at each batch size.

    Returns:
        Rows with the mean, lowest and highest value over the seeds of the best rate,
        the lowest and highest rate within one point of it, on average over the seeds
        that both have, and the loss against batch 64 (None without it). A rate with a
        diverged run is not the best.
    """
    groups: dict[tuple[int, str], dict[float, dict[int, float | None]]] = {}
    for each in results:
        run = each['run']
        rates = groups.setdefault((run['batch_size'], each['method']), {})
        rates.setdefault(each['lr'], {})[run['seed']] = each['value']
    rows = []
    for (batch_size, method), rates in sorted(groups.items()):
        seeds = max(map(len, rates.values()))
        whole = {
            lr: found
            for lr, found in sorted(rates.items())
            if None not in found.values()
        }
        means = {
            lr: statistics.mean(found.values())
            for lr, found in whole.items()
            if len(found) == seeds
        }
        if not means:
            continue
        best = max(means, key=means.get)
        values = whole[best]
        near = []
        for lr, found in whole.items():
            common = found.keys() & values.keys()
            loss = [values[seed] - found[seed] for seed in common]
            if loss and statistics.mean(loss) <= 1:
                near.append(lr)
        row = dict(batch_size=batch_size, method=method, lr=best, mean=means[best])
        row |= dict(lowest=min(values.values()), highest=max(values.values()))
        rows.append(row | dict(seeds=seeds, near=[near[0], near[-1]]))
    at_64 = {row['method']: row['mean'] for row in rows if row['batch_size'] == 64}
    for row in rows:
        small = at_64.get(row['method'])
        row['loss'] = None if small is None else small - row['mean']
    return rows


def pair_differences(results: Iterable[dict]) -> list[dict]:
    """Return each variant's values minus the plain optimizer's, pair by pair.

    A pair has the same batch, learning rate and seed. Pairs with a diverged run are
    counted, not averaged.

    Returns:
        Rows with the differences by seed, their mean and standard deviation (None for
        a single pair).
    """
    results = list(results)

    def key(each: dict) -> tuple:
        return each['run']['batch_size'], each['lr'], each['run']['seed']

    plain = {key(each): each for each in results if not each['run']['variant']}
    rows: dict[tuple, dict] = {}
    for each in sorted(results, key=key):
        other = plain.get(key(each))
        if other is None or not each['run']['variant']:
            continue
        row = rows.setdefault(
            (each['run']['batch_size'], each['method'], each['lr']),
            dict(differences=[], diverged=0, plain_diverged=0),
        )
        row['diverged'] += each['value'] is None
        row['plain_diverged'] += other['value'] is None
        if None not in (each['value'], other['value']):
            row['differences'].append(round(each['value'] - other['value'], 2))
    return [
        dict(
            batch_size=batch_size,
            method=method,
            lr=lr,
            **row,
            mean=statistics.mean(found) if (found := row['differences']) else None,
            deviation=statistics.stdev(found) if len(found) > 1 else None,
        )
        for (batch_size, method, lr), row in sorted(rows.items())
    ]


def module_medians(results: Iterable[dict]) -> list[dict]:
    """Return AGVM's medians by module, at the best learning rate of each method.

    Returns:
        Rows with ``phi``, ``mu`` and ``noise_scale`` (None if it was never finite),
        medians over the seeds of the medians of each run.
    """
    results = list(results)
    rows = []
    for best in summarize(results):
        runs = [
            each['agvm']
            for each in results
            if each['run']['batch_size'] == best['batch_size']
            and (each['method'], each['lr']) == (best['method'], best['lr'])
        ]
        prefix = 'agvm/mu/'
        modules = [key.removeprefix(prefix) for key in runs[0] if prefix in key]
        for module in modules:
            row = {key: best[key] for key in ('batch_size', 'method', 'lr')}
            row['module'] = module
            for name in ('phi', 'mu', 'noise_scale'):
                key = f'agvm/{name}/{module}'
                found = [run[key] for run in runs if key in run]
                row[name] = statistics.median(found) if found else None
            rows.append(row)
    return rows


BEST_COLUMNS: Sequence[report.Column] = (
    ('batch', itemgetter('batch_size')),
    ('method', itemgetter('method')),
    ('best rate', lambda row: f'{row["lr"]:g}'),
    (
        'best (lowest to highest)',
        lambda row: f'{row["mean"]:.1f} ({row["lowest"]:.1f} to {row["highest"]:.1f})',
    ),
    ('seeds', itemgetter('seeds')),
    ('rates within 1 point', lambda row: ' to '.join(f'{lr:g}' for lr in row['near'])),
    (
        'loss against batch 64',
        lambda row: '' if row['loss'] is None else f'{row["loss"]:.1f}',
    ),
)


def show_pairs(row: dict) -> str:
    """Format the differences of a row, and the runs that diverged."""
    text = ', '.join(f'{each:+.1f}' for each in row['differences'])
    for key, name in (('diverged', 'diverged'), ('plain_diverged', 'plain diverged')):
        if row[key]:
            text += f'; {row[key]} {name}'
    return text.removeprefix('; ')


def show_mean(row: dict) -> str:
    """Format the mean of the differences with their standard deviation."""
    if row['mean'] is None:
        return ''
    spread = '' if row['deviation'] is None else f' +- {row["deviation"]:.1f}'
    return f'{row["mean"]:+.1f}{spread}'


PAIR_COLUMNS: Sequence[report.Column] = (
    ('batch', itemgetter('batch_size')),
    ('method', itemgetter('method')),
    ('rate', lambda row: f'{row["lr"]:g}'),
    ('mean +- deviation', show_mean),
    ('by seed', show_pairs),
)

MODULE_COLUMNS: Sequence[report.Column] = (
    ('batch', itemgetter('batch_size')),
    ('method', itemgetter('method')),
    ('rate', lambda row: f'{row["lr"]:g}'),
    ('module', itemgetter('module')),
    ('Phi', lambda row: f'{row["phi"]:.2f}'),
    ('mu', lambda row: f'{row["mu"]:.2f}'),
    (
        'noise scale',
        lambda row: '' if row['noise_scale'] is None else f'{row["noise_scale"]:,.0f}',
    ),
)
