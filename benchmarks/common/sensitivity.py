"""Search of the best learning rates, and comparison of methods pair by pair.

A result is a dict with ``run`` (among its keys ``batch_size``, ``seed`` and
``variant``, which is '' for the plain optimizer), ``method``, ``lr`` and ``value``, in
percent, None if the run diverged.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from operator import itemgetter
from statistics import mean, median, stdev

from benchmarks.paper.sensitivity_figure import by_rate
from gpu_check.tables import Column

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
    the plain optimizer, the first variant, gets those of all, so that every run has its
    pair. ``make`` takes a variant, a step of the learning rate and a seed.
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
    near: dict[str, set[int]] = {}
    while wanted - steps:
        steps |= wanted
        if runs := lacking(dict.fromkeys(variants, steps), first):
            return runs
        for variant in variants:
            best = max(
                steps, key=lambda s, v=variant: score(results[make(v, s, first)])
            )
            near[variant] = {best - 1, best, best + 1}
        wanted = set().union(*near.values())
    near = {variant: near[variant] | near[plain] for variant in variants}
    near[plain] = wanted
    for seed in others:
        if runs := lacking(near, seed):
            return runs
    return []


def summarize(results: Iterable[dict]) -> list[dict]:
    """Return a row for the best learning rate of each method at each batch size.

    'near' are the lowest and highest rate within one point of it, on average over the
    seeds that both have; 'loss' is against batch 64. A rate with a diverged run is not
    the best.
    """
    rows = []
    for (batch_size, method), rates in by_rate(results).items():
        seeds = max(map(len, rates.values()))
        whole = {lr: each for lr, each in rates.items() if None not in each.values()}
        means = {
            lr: mean(found.values())
            for lr, found in whole.items()
            if len(found) == seeds
        }
        if not means:
            continue
        best = max(means, key=means.get)
        values = whole[best]
        near = []
        for lr, found in whole.items():
            loss = [values[seed] - found[seed] for seed in found.keys() & values.keys()]
            if loss and mean(loss) <= 1:
                near.append(lr)
        row = dict(batch_size=batch_size, method=method, lr=best, mean=means[best])
        row |= dict(lowest=min(values.values()), highest=max(values.values()))
        rows.append(row | dict(seeds=seeds, near=[near[0], near[-1]]))
    at_64 = {row['method']: row['mean'] for row in rows if row['batch_size'] == 64}
    for row in rows:
        small = at_64.get(row['method'])
        row['loss'] = None if small is None else small - row['mean']
    return rows


def pair_differences(results: Sequence[dict]) -> list[dict]:
    """Return each variant's values minus the plain optimizer's, pair by pair.

    A pair has the same batch, learning rate and seed. Pairs with a diverged run are
    counted, not averaged.
    """
    plain = by_rate(each for each in results if not each['run']['variant'])
    plain = {batch_size: rates for (batch_size, _), rates in plain.items()}
    others = by_rate(each for each in results if each['run']['variant'])
    rows = []
    for (batch_size, method), rates in others.items():
        for lr, found in rates.items():
            own = plain.get(batch_size, {}).get(lr, {})
            pairs = [(found[seed], own[seed]) for seed in sorted(found) if seed in own]
            if not pairs:
                continue
            differences = [round(a - b, 2) for a, b in pairs if None not in (a, b)]
            rows.append(
                dict(
                    batch_size=batch_size,
                    method=method,
                    lr=lr,
                    differences=differences,
                    diverged=sum(value is None for value, _ in pairs),
                    plain_diverged=sum(value is None for _, value in pairs),
                    mean=mean(differences) if differences else None,
                    deviation=stdev(differences) if len(differences) > 1 else None,
                )
            )
    return rows


def module_medians(results: Sequence[dict]) -> list[dict]:
    """Return Phi, mu and noise scale by module at the best rate of each method.

    They are medians over the seeds of the medians of each run; None: never finite.
    """
    rows = []
    for best in summarize(results):
        same = {key: best[key] for key in ('batch_size', 'method', 'lr')}
        runs = [
            each['agvm']
            for each in results
            if same.items()
            <= dict(each['run'], method=each['method'], lr=each['lr']).items()
        ]
        prefix = 'agvm/mu_'
        for key in runs[0]:
            if not key.startswith(prefix):
                continue
            row = dict(same, module=key.removeprefix(prefix))
            for name in ('phi', 'mu', 'noise_scale'):
                value = f'agvm/{name}_{row["module"]}'
                found = [run[value] for run in runs if value in run]
                row[name] = median(found) if found else None
            rows.append(row)
    return rows


def show_best(row: dict) -> str:
    """Format the mean at the best rate, and its range."""
    return f'{row["mean"]:.1f} ({row["lowest"]:.1f} to {row["highest"]:.1f})'


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


def show(key: str, digits: str) -> Callable[[dict], str]:
    """Return a function that formats a number of a row, '' for None."""
    return lambda row: '' if row[key] is None else format(row[key], digits)


GROUP_COLUMNS: tuple[Column, ...] = (
    ('batch', itemgetter('batch_size')),
    ('method', itemgetter('method')),
)
BEST_COLUMNS: tuple[Column, ...] = (
    *GROUP_COLUMNS,
    ('best rate', show('lr', 'g')),
    ('best (lowest to highest)', show_best),
    ('seeds', itemgetter('seeds')),
    ('rates within 1 point', lambda row: ' to '.join(f'{lr:g}' for lr in row['near'])),
    ('loss against batch 64', show('loss', '.1f')),
)
PAIR_COLUMNS: tuple[Column, ...] = (
    *GROUP_COLUMNS,
    ('rate', show('lr', 'g')),
    ('mean +- deviation', show_mean),
    ('by seed', show_pairs),
)
MODULE_COLUMNS: tuple[Column, ...] = (
    *GROUP_COLUMNS,
    ('rate', show('lr', 'g')),
    ('module', itemgetter('module')),
    ('Phi', show('phi', '.2f')),
    ('mu', show('mu', '.2f')),
    ('noise scale', show('noise_scale', ',.0f')),
)
