"""Check that a checkpoint belongs to the training that resumes it."""

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence

from mmengine.logging import print_log
from mmengine.runner import Runner

from agvm_mm.engine import ParamScheduler, accumulative_counts

# In the message hub, which is part of a checkpoint.
TOTAL_BATCH_SIZE = 'agvm_total_batch_size'
IMAGES_OF_ITERATION = 'agvm_images_of_iteration'


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


def replay_schedules(
    schedulers: Sequence[ParamScheduler],
    fresh: Sequence[dict],
    *,
    iterations: int,
    epochs: int,
    epoch_length: int,
) -> None:
    """Bring schedules and parameter groups to where a run has got.

    Schedulers compute a value from the one before, which is in the groups of the
    optimizer. Without the state of either, all steps so far are repeated.

    Args:
        schedulers: Of this run; changed in place, and so are the groups.
        fresh: Their states before the first update.
        iterations: Iterations so far.
        epochs: Epochs so far.
        epoch_length: Iterations of an epoch.
    """
    for scheduler, state in zip(schedulers, fresh, strict=True):
        scheduler.load_state_dict(copy.deepcopy(state))
        groups = scheduler.optimizer.param_groups
        for group, value in zip(groups, scheduler.get_last_value(), strict=True):
            group[scheduler.param_name] = value
    by_iteration, by_epoch = (
        [scheduler for scheduler in schedulers if scheduler.by_epoch is kind]
        for kind in (False, True)
    )
    with warnings.catch_warnings():
        # About steps of a schedule before the first step of the optimizer.
        warnings.simplefilter('ignore')
        for done in range(1, iterations + 1):
            steps = list(by_iteration)
            if done % epoch_length == 0 and done // epoch_length <= epochs:
                steps += by_epoch
            for scheduler in steps:
                scheduler.step()


def check_batch_size(runner: Runner, total: int) -> None:
    """Check that a resumed run keeps its batch size, and store it in checkpoints.

    Also that its iterations have as many images as before: schedules count them.

    Args:
        runner: About to train.
        total: Images of one update over all ranks.

    Raises:
        ValueError: If the checkpoint has another batch size and its optimizer wrapper
            does not have ``allow_resume_mismatch``.
    """
    hub, wrapper = runner.message_hub, runner.optim_wrapper
    counts = accumulative_counts(wrapper)
    now = {'images of an update': total, 'images of an iteration': total // counts}
    saved, known = dict(now), getattr(wrapper, 'effective_batch_size', None)
    # At iteration 0 the hub may hold the values of an earlier run of this process.
    if runner.iter > 0:
        stored = hub.runtime_info.get(TOTAL_BATCH_SIZE, 'not stored')
        of_iteration = hub.runtime_info.get(IMAGES_OF_ITERATION, total // counts)
        saved = dict(zip(now, (known or stored, of_iteration), strict=True))
        if known is None and hasattr(wrapper, 'num_updates'):
            # The run continues a checkpoint without the state of AGVM.
            wrapper.num_updates = runner.iter // counts
    check_same_training(
        compare(saved, now), allowed=getattr(wrapper, 'allow_resume_mismatch', False)
    )
    hub.update_info(TOTAL_BATCH_SIZE, total)
    hub.update_info(IMAGES_OF_ITERATION, total // counts)
    wrapper.effective_batch_size = total
