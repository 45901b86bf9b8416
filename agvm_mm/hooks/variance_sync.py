"""The hook that measures gradient variances for AGVM."""

import math
from collections.abc import Mapping, Sequence

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from agvm_mm.loops.batch_size import (
    effective_batch_size,
    images_per_rank,
    micro_batches_per_update,
)
from agvm_mm.checkpoint.loading import prepare_resume
from agvm_mm.validation import check_choice, check_number, suggests_arguments
from agvm_mm.estimators import COMPRESSION_HOOKS, ESTIMATORS, build_estimator
from agvm_mm.preflight import (
    check_model,
    check_optim_wrapper,
    check_ranks_agree,
)
from agvm_mm.optim.agvm_wrapper import AGVMMixin
from agvm_mm.checkpoint.match import base_learning_rates, report_differences
from agvm_mm.modulator import MeasurementSchedule
from agvm_mm.loops.summary import describe_run, parameter_counts


@HOOKS.register_module()
@suggests_arguments()
class VarianceSyncHook(Hook):
    """Measures each module's gradient variance and hands it to the wrapper.

    Under DDP the replicas are the ranks, also with gradient accumulation. In one
    process they are the micro-batches of an accumulated update. Logged at each
    measurement: ``train/agvm/phi/<module>`` and ``train/agvm/mu/<module>``.

    Args:
        interval (int): Optimizer updates from one measurement to the next.
            Defaults to 10.
        begin (int): First update (from 0) at which AGVM acts, best after the
            warm-up. Defaults to 0.
        end (int, optional): Last such update. Defaults to None, no end.
        estimator (str): 'halves', the paper's: one more all-reduce of the gradient
            at a measured update; or 'replicas': a few scalars, and less noise the
            more ranks there are. Defaults to 'halves'.
        comm_hook (str, optional): 'fp16_compress_hook' or 'bf16_compress_hook', to
            compress DDP's own reduction. Defaults to None.
        max_rejected (int, optional): Stop after so many measurements in a row that
            could not be used, because they were not finite or the anchor had no
            gradient; None to go on. Defaults to 10.

    Raises:
        TypeError: If a setting is of the wrong kind.
        ValueError: If a setting is out of range.
    """

    # Before LoggerHook (BELOW_NORMAL), which writes what this hook reports.
    priority = 'NORMAL'

    def __init__(
        self,
        *,
        interval: int = 10,
        begin: int = 0,
        end: int | None = None,
        estimator: str = 'halves',
        comm_hook: str | None = None,
        max_rejected: int | None = 10,
    ) -> None:
        self.schedule = MeasurementSchedule(interval=interval, begin=begin, end=end)
        check_choice('estimator', estimator, ESTIMATORS)
        if comm_hook is not None:
            check_choice('comm_hook', comm_hook, COMPRESSION_HOOKS)
        if max_rejected is not None:
            check_number('max_rejected', max_rejected, low=1, integer=True)
        self.estimator = estimator
        self.comm_hook = comm_hook
        self.max_rejected = max_rejected
        self._attached_to: nn.Module | None = None
        self._logged = (0, 0)
        self._rejected_in_a_row = 0

    def before_run(self, runner) -> None:
        """Check the checkpoint to resume before the runner reads it.

        Raises:
            RuntimeError: If it is missing, truncated or corrupt.
        """
        prepare_resume(runner)

    def before_train(self, runner) -> None:
        """Attach an estimator to the optimizer wrapper.

        Raises:
            TypeError: If the optimizer wrapper or the model's wrapper is of a kind
                that AGVM cannot work with.
            ValueError: If there is nothing to compare, the ranks disagree on what
                they train, or the run resumes one on another batch size.
        """
        wrapper = runner.optim_wrapper
        check_optim_wrapper(wrapper)
        accumulation = micro_batches_per_update(runner)
        check_model(runner.model, accumulation)
        check_ranks_agree(
            self._fingerprint(wrapper)
            | {
                'images of a micro-batch': images_per_rank(runner.train_dataloader),
                'micro-batches of an update': accumulation,
            }
        )
        batch_size = effective_batch_size(runner)
        if wrapper.effective_batch_size not in (None, batch_size):
            report_differences(
                {'images of an update': (wrapper.effective_batch_size, batch_size)},
                allowed=wrapper.allow_resume_mismatch,
            )
        wrapper.effective_batch_size = batch_size
        # DDP takes one communication hook in its life, and a runner may train twice.
        if self._attached_to is not runner.model:
            wrapper.attach(
                build_estimator(
                    self.estimator,
                    wrapper.optimizer,
                    runner.model,
                    accumulation=accumulation,
                    comm_hook=self.comm_hook,
                ),
                self.schedule,
            )
            self._attached_to = runner.model
        self._logged = (wrapper.num_measurements, wrapper.num_skipped_measurements)
        runner.logger.info(describe_run(runner, self.schedule, self.estimator))

    def _fingerprint(self, wrapper: AGVMMixin) -> dict[str, object]:
        """What must be the same on all ranks, by its name in messages."""
        return {
            'begin': self.schedule.begin,
            'end': self.schedule.end,
            'interval': self.schedule.interval,
            'estimator': self.estimator,
            'comm_hook': self.comm_hook,
            'parameters of each module': parameter_counts(wrapper),
            'anchor': wrapper.modulator.anchor,
            'momentum': wrapper.modulator.momentum,
            'ratio_bounds': wrapper.modulator.ratio_bounds,
            'clip_window': wrapper.clip_window,
            'learning rates': base_learning_rates(wrapper.optimizer.param_groups),
            'update': wrapper.num_updates,
            'multipliers': wrapper.multipliers,
        }

    def after_train_iter(
        self,
        runner,
        batch_idx: int,
        data_batch: Sequence[dict] | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Report a new measurement to the message hub.

        Raises:
            FloatingPointError: If ``max_rejected`` measurements in a row could not be
                used.
        """
        wrapper = runner.optim_wrapper
        measured, skipped = self._logged
        self._logged = (wrapper.num_measurements, wrapper.num_skipped_measurements)
        if wrapper.num_measurements > measured:
            # Those of the update that was measured: past `end` none is in force.
            multipliers = wrapper.modulator.multipliers
            for module, variance in wrapper.variances.items():
                runner.message_hub.update_scalar(f'train/agvm/phi/{module}', variance)
                runner.message_hub.update_scalar(
                    f'train/agvm/mu/{module}', multipliers[module]
                )
            self._rejected_in_a_row = 0
        if wrapper.num_skipped_measurements > skipped:
            self._rejected_in_a_row += 1
            self._report_rejected(runner)

    def _report_rejected(self, runner) -> None:
        wrapper = runner.optim_wrapper
        update = wrapper.num_updates - 1
        reason = explain_rejected(wrapper.rejected_variances, wrapper.modulator.anchor)
        runner.message_hub.update_scalar(
            'train/agvm/rejected', wrapper.num_skipped_measurements
        )
        runner.logger.warning(
            f'AGVM: left out the measurement at update {update} '
            f'({wrapper.num_skipped_measurements} so far): {reason}'
        )
        if self._rejected_in_a_row == self.max_rejected:
            raise FloatingPointError(
                f'AGVM: {self.max_rejected} measurements in a row, up to update '
                f'{update}, could not be used: {reason}. '
                f'{advise_rejected(wrapper.rejected_variances)}; '
                'VarianceSyncHook(max_rejected=None) goes on all the same'
            )


def explain_rejected(variances: Mapping[str, float], anchor: str) -> str:
    """Why a measurement was left out.

    Gradients that are not finite spread from the loss towards the input, so that
    they began in the last module that has them.

    Args:
        variances (Mapping[str, float]): Phi by module, in the order of the network.
        anchor (str): The anchor's name.
    """
    bad = not_finite(variances)
    if not bad:
        return f"the anchor '{anchor}' had no gradient"
    return f"gradients are not finite, beginning in '{bad[-1]}' ({', '.join(bad)})"


def advise_rejected(variances: Mapping[str, float]) -> str:
    """What to do about measurements that were left out."""
    if not_finite(variances):
        return 'Lower the learning rate or lengthen the warm-up'
    return 'Take another anchor, or see why no loss reaches this one'


def not_finite(variances: Mapping[str, float]) -> list[str]:
    """Modules whose Phi is not finite, in the order of the network."""
    return [name for name, phi in variances.items() if not math.isfinite(phi)]
