"""Hook that measures gradient variances for AGVM."""

import math
from collections.abc import Mapping, Sequence

from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from agvm_mm.checkpoint.match import base_learning_rates, check_batch_size
from agvm_mm.checkpoint.resume import ResumeHook
from agvm_mm.estimators import COMPRESSION_HOOKS, ESTIMATORS, build_estimator
from agvm_mm.loops.batch_size import batch_size_of
from agvm_mm.loops.summary import describe_run, parameter_counts
from agvm_mm.modulator import MeasurementSchedule
from agvm_mm.optim.agvm_wrapper import AGVMMixin, Measurement
from agvm_mm.preflight import (
    check_model,
    check_one_hook,
    check_optim_wrapper,
    check_ranks_agree,
)
from agvm_mm.validation import check_choice, check_number, suggests_arguments


@HOOKS.register_module()
@suggests_arguments()
class VarianceSyncHook(ResumeHook):
    """Hook that measures each module's gradient variance for the optimizer wrapper.

    Under DDP the replicas are the ranks, also with gradient accumulation. In one
    process they are the micro-batches of an accumulated update. Each measurement logs
    ``train/agvm/phi/<module>`` and ``train/agvm/mu/<module>``.

    Args:
        interval: Optimizer updates from one measurement to the next. Defaults to 10.
        begin: First update (from 0) at which AGVM acts, best after the warm-up.
            Defaults to 0.
        end: Last such update. Defaults to None, no end.
        estimator: 'halves', the paper's: one more all-reduce of the gradient at a
            measured update; or 'replicas': a few scalars, and less noise the more ranks
            there are. Defaults to 'halves'.
        comm_hook: 'fp16_compress_hook' or 'bf16_compress_hook', to compress DDP's own
            reduction. Defaults to None.
        max_rejected: Number of measurements in a row that could not be used (not
            finite, or the anchor had no gradient) after which training stops; None to
            never stop. Defaults to 10.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If a setting is out of range.
    """

    # Before LoggerHook (BELOW_NORMAL), which writes what this hook reports.
    priority = 'NORMAL'
    agvm = True

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
        super().__init__()
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
        self._measurement: Measurement | None = None
        self._rejected_in_a_row = 0

    def before_run(self, runner: Runner) -> None:
        """Check the hooks, and the checkpoint to resume before the runner reads it.

        Raises:
            RuntimeError: If the checkpoint is missing, truncated or corrupt.
            ValueError: If the runner has several of these hooks.
        """
        hooks = [hook for hook in runner.hooks if isinstance(hook, VarianceSyncHook)]
        check_one_hook('VarianceSyncHook', len(hooks))
        super().before_run(runner)

    def before_train(self, runner: Runner) -> None:
        """Attach an estimator to the optimizer wrapper.

        Raises:
            TypeError: If AGVM does not support the optimizer wrapper or the wrapper of
                the model.
            ValueError: If there is nothing to compare, the ranks disagree on what they
                train, or the run resumes one with another batch size.
        """
        wrapper = runner.optim_wrapper
        check_optim_wrapper(wrapper, AGVMMixin)
        super().before_train(runner)
        batch = batch_size_of(runner)
        check_model(runner.model, batch.micro_batches)
        check_ranks_agree(
            self._fingerprint(wrapper)
            | {
                'images of a micro-batch': batch.images_per_rank,
                'micro-batches of an update': batch.micro_batches,
            }
        )
        check_batch_size(runner, batch.total)
        # DDP accepts one communication hook, and a runner may train twice.
        if self._attached_to is not runner.model:
            estimator = build_estimator(
                self.estimator,
                wrapper.optimizer,
                runner.model,
                accumulation=batch.micro_batches,
                comm_hook=self.comm_hook,
            )
            wrapper.attach(estimator, self.schedule, self._receive)
            self._attached_to = runner.model
        runner.logger.info(describe_run(runner, batch, self.schedule, self.estimator))

    def _fingerprint(self, wrapper: AGVMMixin) -> dict[str, object]:
        """Return the settings that all ranks must share, by their name in messages."""
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

    def _receive(self, measurement: Measurement) -> None:
        self._measurement = measurement

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Sequence[dict] | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Log a new measurement.

        Raises:
            FloatingPointError: If ``max_rejected`` measurements in a row could not be
                used.
        """
        measurement, self._measurement = self._measurement, None
        if measurement is None:
            return
        if not measurement.accepted:
            self._rejected_in_a_row += 1
            self._report_rejected(runner, measurement)
            return
        self._rejected_in_a_row = 0
        for module, variance in measurement.variances.items():
            multiplier = measurement.multipliers[module]
            runner.message_hub.update_scalar(f'train/agvm/phi/{module}', variance)
            runner.message_hub.update_scalar(f'train/agvm/mu/{module}', multiplier)

    def _report_rejected(self, runner: Runner, measurement: Measurement) -> None:
        wrapper = runner.optim_wrapper
        count, update = wrapper.num_skipped_measurements, measurement.update
        reason = explain_rejected(measurement.variances, wrapper.modulator.anchor)
        runner.message_hub.update_scalar('train/agvm/rejected', count)
        runner.logger.warning(
            f'AGVM: skipped the measurement at update {update} ({count} so far): '
            f'{reason}'
        )
        if self._rejected_in_a_row == self.max_rejected:
            raise FloatingPointError(
                f'AGVM: {self.max_rejected} measurements in a row, up to update '
                f'{update}, could not be used: {reason}. '
                f'{advise_rejected(measurement.variances)}; '
                'VarianceSyncHook(max_rejected=None) continues anyway'
            )


def explain_rejected(variances: Mapping[str, float], anchor: str) -> str:
    """Return why a measurement was skipped.

    Args:
        variances: Phi by module.
        anchor: Name of the anchor.
    """
    bad = not_finite(variances)
    if not bad:
        return f"the anchor '{anchor}' had no gradient"
    finite = [name for name in variances if name not in bad]
    rest = f', but finite in {", ".join(finite)}' if finite else ''
    return f'gradients are not finite in {", ".join(bad)}{rest}'


def advise_rejected(variances: Mapping[str, float]) -> str:
    """Return what to do about skipped measurements."""
    if not_finite(variances):
        return 'Lower the learning rate or lengthen the warm-up'
    return 'Choose another anchor, or find out why no loss reaches this one'


def not_finite(variances: Mapping[str, float]) -> list[str]:
    """Return the modules whose Phi is not finite."""
    return [name for name, phi in variances.items() if not math.isfinite(phi)]
