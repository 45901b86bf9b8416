"""Hook that measures gradient variances for AGVM."""

import math
from collections.abc import Mapping, Sequence

from mmengine.optim import BaseOptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from agvm_mm.engine import accumulative_counts
from agvm_mm.estimators import COMPRESSION_HOOKS, ESTIMATORS, build_estimator
from agvm_mm.method.modulator import MeasurementSchedule
from agvm_mm.method.modules import trainable_by_module
from agvm_mm.optim.measuring import Measurement, MeasuringMixin, measure
from agvm_mm.optim.wrapper import AGVMMixin
from agvm_mm.preflight import (
    check_model,
    check_one_hook,
    check_one_optimizer,
    check_optim_wrapper,
    check_ranks_agree,
)
from agvm_mm.training.batch import batch_size_of
from agvm_mm.training.match import base_learning_rates, check_batch_size
from agvm_mm.training.resume import ResumeHook
from agvm_mm.training.summary import describe_run, parameter_counts
from agvm_mm.validation import check_choice, check_number, suggests_arguments


@HOOKS.register_module()
@suggests_arguments()
class VarianceSyncHook(ResumeHook):
    """Hook that measures each module's gradient variance and noise scale.

    Under DDP the replicas are the ranks, also with gradient accumulation. In one
    process they are the micro-batches of an accumulated update. Each measurement logs
    ``train/agvm/phi/<module>``, ``train/agvm/mu/<module>`` and, in images,
    ``train/agvm/noise_scale/<module>`` and ``train/agvm/noise_scale/all``. A noise
    scale that the measurements so far do not resolve is NaN.

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
        act: Whether AGVM scales learning rates. False measures and logs only, with any
            optimizer wrapper. Defaults to True.

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
        act: bool = True,
    ) -> None:
        super().__init__()
        self.schedule = MeasurementSchedule(
            interval=interval, begin=begin, end=end, act=act
        )
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

        Without AGVM, the optimizer wrapper is made to measure.

        Raises:
            RuntimeError: If the checkpoint is missing, truncated or corrupt.
            TypeError: If the optimizer wrapper cannot measure.
            ValueError: If the runner has several of these hooks.
        """
        hooks = [hook for hook in runner.hooks if isinstance(hook, VarianceSyncHook)]
        check_one_hook('VarianceSyncHook', len(hooks))
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, BaseOptimWrapper):  # None in a run that evaluates.
            check_one_optimizer('VarianceSyncHook', wrapper)
            if not self.schedule.act and not isinstance(wrapper, MeasuringMixin):
                measure(wrapper)
            self.agvm = isinstance(wrapper, AGVMMixin)
        super().before_run(runner)

    def before_train(self, runner: Runner) -> None:
        """Attach an estimator to the optimizer wrapper.

        Raises:
            TypeError: If AGVM does not support the optimizer, its wrapper or the
                wrapper of the model.
            ValueError: If there is nothing to compare, the ranks disagree on what they
                train, or the run resumes one with another batch size.
        """
        wrapper = runner.optim_wrapper
        check_optim_wrapper(wrapper, MeasuringMixin)
        super().before_train(runner)
        batch = batch_size_of(runner)
        check_model(runner.model, batch.micro_batches)
        by_module = None
        if self.agvm:
            check_batch_size(runner, batch.total)
        else:
            by_module = trainable_by_module(runner.model)
            wrapper.num_updates = runner.iter // accumulative_counts(wrapper)
        check_ranks_agree(
            self._fingerprint(wrapper)
            | {
                'images of a micro-batch': batch.images_per_rank,
                'micro-batches of an update': batch.micro_batches,
            }
        )
        # DDP accepts one communication hook, and a runner may train twice.
        if self._attached_to is not runner.model:
            estimator = build_estimator(
                self.estimator,
                wrapper.optimizer,
                runner.model,
                accumulation=batch.micro_batches,
                comm_hook=self.comm_hook,
                by_module=by_module,
            )
            wrapper.attach(
                estimator,
                self.schedule,
                self._receive,
                images_per_pass=batch.ranks * batch.images_per_rank,
            )
            self._attached_to = runner.model
        runner.logger.info(describe_run(runner, batch, self.schedule, self.estimator))

    def _fingerprint(self, wrapper: MeasuringMixin) -> dict[str, object]:
        """Return the settings that all ranks must share, by their name in messages."""
        settings = {
            'begin': self.schedule.begin,
            'end': self.schedule.end,
            'interval': self.schedule.interval,
            'act': self.schedule.act,
            'estimator': self.estimator,
            'comm_hook': self.comm_hook,
            'parameters of each module': parameter_counts(wrapper),
            'learning rates': base_learning_rates(wrapper.optimizer.param_groups),
            'update': wrapper.num_updates,
        }
        if not self.agvm:
            return settings
        return settings | {
            'anchor': wrapper.modulator.anchor,
            'momentum': wrapper.modulator.momentum,
            'ratio_bounds': wrapper.modulator.ratio_bounds,
            'clip_window': wrapper.clip_window,
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
            runner.message_hub.update_scalar(f'train/agvm/phi/{module}', variance)
            if measurement.multipliers:
                multiplier = measurement.multipliers[module]
                runner.message_hub.update_scalar(f'train/agvm/mu/{module}', multiplier)
        for module, scale in measurement.noise_scales.items():
            runner.message_hub.update_scalar(f'train/agvm/noise_scale/{module}', scale)

    def _report_rejected(self, runner: Runner, measurement: Measurement) -> None:
        wrapper = runner.optim_wrapper
        count, update = wrapper.num_skipped_measurements, measurement.update
        anchor = wrapper.modulator.anchor if self.agvm else None
        reason = explain_rejected(measurement.variances, anchor)
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


def explain_rejected(variances: Mapping[str, float], anchor: str | None) -> str:
    """Return why a measurement was skipped.

    Args:
        variances: Phi by module.
        anchor: Name of the anchor; None without AGVM.
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
