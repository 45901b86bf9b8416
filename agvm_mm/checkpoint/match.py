"""Check that a checkpoint belongs to the training that resumes it."""

import logging
from collections.abc import Mapping, Sequence

from mmengine.logging import print_log
from mmengine.runner import Runner

# In the message hub, which is part of a checkpoint.
TOTAL_BATCH_SIZE = 'agvm_total_batch_size'


def base_learning_rates(groups: Sequence[Mapping]) -> dict[str, list[float]]:
    """Return the learning rates before any schedule, by module name."""
    rates: dict[str, set[float]] = {}
    for group in groups:
        rate = float(group.get('initial_lr', group['lr']))
        rates.setdefault(str(group.get('module')), set()).add(rate)
    return {module: sorted(values) for module, values in rates.items()}


def compare(saved: Mapping, now: Mapping) -> dict[str, tuple]:
    """Return the settings that differ between a checkpoint and this run.

    Args:
        saved: Settings of the checkpoint; those that this run lacks are ignored.
        now: Settings of this run.

    Returns:
        Value of the checkpoint and value of this run, by setting.
    """
    return {
        name: (saved[name], value)
        for name, value in now.items()
        if saved[name] != value
    }


def check_same_training(differences: Mapping[str, tuple], allowed: bool) -> None:
    """Check that a checkpoint does not differ from this run, or log the differences.

    Args:
        differences: From :func:`compare`.
        allowed: Whether to resume in spite of differences.

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
            f'the checkpoint belongs to another training ({listed}). Set '
            'optim_wrapper.allow_resume_mismatch=True to resume it anyway, or start '
            'from its weights with load_from'
        )
    print_log(
        f'AGVM: resuming a checkpoint of another training ({listed})',
        logger='current',
        level=logging.WARNING,
    )


def check_batch_size(runner: Runner, total: int) -> None:
    """Check that a resumed run keeps its batch size, and store it in checkpoints.

    Args:
        runner: About to train.
        total: Images of one update over all ranks.

    Raises:
        ValueError: If the checkpoint has another batch size and its optimizer wrapper
            does not have ``allow_resume_mismatch``.
    """
    hub, wrapper = runner.message_hub, runner.optim_wrapper
    saved = getattr(wrapper, 'effective_batch_size', None)
    # At iteration 0 the hub may hold the value of an earlier run of this process.
    if saved is None and runner.iter > 0:
        saved = hub.runtime_info.get(TOTAL_BATCH_SIZE)
    if saved not in (None, total):
        check_same_training(
            {'images of an update': (saved, total)},
            allowed=getattr(wrapper, 'allow_resume_mismatch', False),
        )
    hub.update_info(TOTAL_BATCH_SIZE, total)
    wrapper.effective_batch_size = total
