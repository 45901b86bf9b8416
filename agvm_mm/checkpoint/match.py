"""Is the checkpoint that is taken up one of this training?"""

import logging
from collections.abc import Mapping, Sequence

from mmengine.logging import print_log


def base_learning_rates(groups: Sequence[Mapping]) -> dict[str, list[float]]:
    """Learning rates of parameter groups before any schedule, by module name."""
    rates: dict[str, set[float]] = {}
    for group in groups:
        rate = float(group.get('initial_lr', group['lr']))
        rates.setdefault(str(group.get('module')), set()).add(rate)
    return {module: sorted(values) for module, values in rates.items()}


def compare(saved: Mapping, now: Mapping) -> dict[str, tuple]:
    """The settings of this run that a checkpoint has other values of.

    Args:
        saved (Mapping): The checkpoint's settings; more of them do no harm.
        now (Mapping): This run's.

    Returns:
        dict[str, tuple]: The checkpoint's value and this run's, by setting.
    """
    return {
        name: (saved[name], value)
        for name, value in now.items()
        if saved[name] != value
    }


def report_differences(differences: Mapping[str, tuple], allowed: bool) -> None:
    """Refuse to go on from another training, or log that it was allowed.

    Args:
        differences (Mapping[str, tuple]): From :func:`compare`.
        allowed (bool): Whether to go on.

    Raises:
        ValueError: If there are differences and they are not allowed.
    """
    if not differences:
        return
    listed = '; '.join(
        f'{name}: {saved} in the checkpoint, {now} in this run'
        for name, (saved, now) in differences.items()
    )
    if not allowed:
        raise ValueError(
            f'the checkpoint is of another training ({listed}). Set '
            'optim_wrapper.allow_resume_mismatch=True to go on from it all the same'
        )
    print_log(
        f'AGVM: going on from a checkpoint of another training ({listed})',
        logger='current',
        level=logging.WARNING,
    )
