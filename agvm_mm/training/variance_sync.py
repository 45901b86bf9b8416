"""Hook that measures gradient variances for AGVM."""

import math
from collections.abc import Mapping, Sequence

from mmengine.dist import all_gather_object
from mmengine.hooks import CheckpointHook, EMAHook, Hook, LoggerHook
from mmengine.optim import AmpOptimWrapper, BaseOptimWrapper
from mmengine.optim.optimizer import ZeroRedundancyOptimizer
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.optim import SGD, Optimizer

from agvm_mm.engine import accumulative_counts, is_resuming
from agvm_mm.estimators import (
    COMPRESSION_HOOKS,
    ESTIMATORS,
    build_estimator,
    check_model,
)
from agvm_mm.method.modulator import MeasurementSchedule
from agvm_mm.optim.agvm import Measurement
from agvm_mm.optim.wrapper import AGVMOptimWrapper, check_one_optimizer
from agvm_mm.sharding.model import FullyShardedModel
from agvm_mm.sharding.state import is_divided
from agvm_mm.training.atomic import AtomicCheckpointHook
from agvm_mm.training.batch import BatchSize, batch_size_of
from agvm_mm.training.evaluation import check_evaluator
from agvm_mm.training.resume import base_learning_rates, resume_hook
from agvm_mm.training.summary import count_trained, describe_run
from agvm_mm.training.warmup import end_of_warmup, learning_rates
from agvm_mm.validation import (
    check_choice,
    check_flag,
    check_number,
    suggests_arguments,
)

WARMUP = 'warmup'


@HOOKS.register_module()
@suggests_arguments()
class VarianceSyncHook(Hook):
    """Hook that measures each module's gradient variance and noise scale.

    Under DDP the replicas are the ranks, also with gradient accumulation. In one
    process they are the micro-batches of an accumulated update. The backends of the
    visualizer (JSON, TensorBoard) get ``agvm/phi_<module>``, ``agvm/mu_<module>`` and,
    in images, ``agvm/noise_scale_<module>`` and ``agvm/noise_scale_all`` of each
    measured update, without noise scales that the measurements so far do not resolve.
    The text log has Phi and mu of the last measurement before each line of
    ``LoggerHook``.

    Args:
        interval: Optimizer updates from one measurement to the next. Defaults to 10.
        begin: First update (from 0) at which AGVM acts, or 'warmup': the first one
            whose learning rate is at its peak, within 1%, by the schedules of the run.
            Defaults to 'warmup'.
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
            optimizer. Defaults to True.
        allow_resume_mismatch: Whether to resume a checkpoint of another batch size,
            anchor, module split, optimizer or learning rate, or without the state of
            the optimizer or its schedules, instead of raising. Defaults to False.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If a setting is out of range.
    """

    # Before LoggerHook (BELOW_NORMAL), which writes what this hook reports.
    priority = 'NORMAL'

    def __init__(
        self,
        *,
        interval: int = 10,
        begin: int | str = WARMUP,
        end: int | None = None,
        estimator: str = 'halves',
        comm_hook: str | None = None,
        max_rejected: int | None = 10,
        act: bool = True,
        allow_resume_mismatch: bool = False,
    ) -> None:
        if isinstance(begin, str):
            check_choice('begin', begin, [WARMUP])
        check_choice('estimator', estimator, ESTIMATORS)
        if comm_hook is not None:
            check_choice('comm_hook', comm_hook, COMPRESSION_HOOKS)
        if max_rejected is not None:
            check_number('max_rejected', max_rejected, low=1, integer=True)
        check_flag('act', act)
        self.interval = interval
        self.begin = begin
        self.end = end
        self.estimator = estimator
        self.comm_hook = comm_hook
        self.max_rejected = max_rejected
        self.act = act
        self.allow_resume_mismatch = allow_resume_mismatch
        # Raises for settings out of range.
        self.schedule = self.make_schedule(0 if begin == WARMUP else begin)
        self._found_begin = False
        self._attached_to: nn.Module | None = None
        self._measurement: Measurement | None = None
        self._for_next_line: Measurement | None = None
        self._rejected_in_a_row = 0

    def make_schedule(self, begin: int) -> MeasurementSchedule:
        """Return the schedule that begins at an update."""
        return MeasurementSchedule(interval=self.interval, begin=begin, end=self.end)

    def before_run(self, runner: Runner) -> None:
        """Find the modules of the model, before the runner reads a checkpoint.

        Raises:
            TypeError: If AGVM does not support the optimizer, its wrapper or the
                wrapper of the model.
            ValueError: If the runner has several of these hooks, the model has no such
                modules, or the run has no update to measure.
        """
        hooks = [hook for hook in runner.hooks if isinstance(hook, VarianceSyncHook)]
        check_one_hook(len(hooks))
        resume_hook(runner, allow_mismatch=self.allow_resume_mismatch, compares=True)
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, BaseOptimWrapper):  # In a run that evaluates.
            return
        check_optim_wrapper(wrapper)
        if wrapper.agvm is None:
            check_model(runner.model, batch_size_of(runner).micro_batches)
            model = getattr(runner.model, 'module', runner.model)
            over_ranks = model is not runner.model
            wrapper.make_agvm(model, act=self.act, over_ranks=over_ranks)
            if is_divided(wrapper.optimizer):
                check_saving(runner.hooks)
            if isinstance(runner.model, FullyShardedModel):
                check_fully_sharded(runner)
        if not self._found_begin:  # Before schedules step or a checkpoint sets them.
            self._find_begin(runner)
            self._found_begin = True

    def _find_begin(self, runner: Runner) -> None:
        wrapper, iterations = runner.optim_wrapper, runner.max_iters
        counts = accumulative_counts(wrapper)
        if self.begin == WARMUP:
            rates = learning_rates(
                runner.param_schedulers or [],
                wrapper.optimizer.param_groups,
                iterations=iterations,
                epoch=iterations // runner.max_epochs,
                accumulation=counts,
            )
            self.schedule = self.make_schedule(end_of_warmup(rates))
        check_measures(self.schedule, math.ceil(iterations / counts))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check that the checkpoint to resume belongs to this training.

        With ``allow_resume_mismatch`` differences are logged instead. Multipliers of
        modules that both have are kept and others start at 1, schedules continue as
        saved, and another optimizer starts without its moments.

        Raises:
            ValueError: If it was saved with another anchor, other modules, another
                optimizer or other learning rates, or by an old version of AGVM.
        """
        wrapper = runner.optim_wrapper
        if not is_resuming(runner) or not isinstance(wrapper, AGVMOptimWrapper):
            return
        state = checkpoint.get('optimizer')
        if not state:  # ResumeHook decides about it.
            return
        if any('module' in group for group in state['param_groups']):
            raise ValueError(
                'the checkpoint was written by an older agvm_mm, whose optimizer had '
                'one parameter group for each module; resume it with that version, or '
                'start from its weights with load_from'
            )
        saved = state.get('agvm')
        if saved is None:
            runner.logger.info(
                'AGVM: the checkpoint is that of a run without AGVM, which starts now: '
                'multipliers of 1, no averages'
            )
            return
        resume, key = resume_hook(runner), 'learning rates'
        groups = wrapper.optimizer.param_groups
        differences = resume.compare(
            dict(saved) | {key: base_learning_rates(state['param_groups'])},
            wrapper.agvm.state_dict() | {key: base_learning_rates(groups)},
            ['anchor', 'modules', 'optimizer', key],
        )
        if 'optimizer' in differences:
            # Without a collective, if the state is divided over the ranks.
            state.update(Optimizer.state_dict(wrapper.optimizer))
            resume.replays = True

    def before_train(self, runner: Runner) -> None:
        """Attach an estimator to the optimizer wrapper.

        Raises:
            ValueError: If there is nothing to compare, or the ranks disagree on what
                they train.
        """
        wrapper, batch = runner.optim_wrapper, batch_size_of(runner)
        agvm = wrapper.agvm
        if not agvm.num_updates:  # The run continues one without AGVM.
            agvm.num_updates = runner.iter // accumulative_counts(wrapper)
        check_ranks_agree(self._fingerprint(wrapper, batch))
        # DDP accepts one communication hook, and a runner may train twice.
        if self._attached_to is not runner.model:
            estimator = build_estimator(
                self.estimator,
                agvm.preconditioner,
                agvm.parameters,
                runner.model,
                accumulation=batch.micro_batches,
                comm_hook=self.comm_hook,
            )
            agvm.attach(
                estimator,
                self.schedule,
                self._receive,
                images_per_pass=batch.ranks * batch.images_per_rank,
            )
            self._attached_to = runner.model
        check_evaluator(runner)
        runner.logger.info(describe_run(runner, batch, agvm, self.estimator))

    def _fingerprint(
        self, wrapper: AGVMOptimWrapper, batch: BatchSize
    ) -> dict[str, object]:
        """Return the settings that all ranks must share, by their name in messages."""
        agvm = wrapper.agvm
        counts = {name: count_trained(own) for name, own in agvm.parameters.items()}
        return {
            'begin': self.schedule.begin,
            'end': self.end,
            'interval': self.interval,
            'act': self.act,
            'estimator': self.estimator,
            'comm_hook': self.comm_hook,
            'parameters of each module': counts,
            'learning rates': base_learning_rates(wrapper.optimizer.param_groups),
            'update': agvm.num_updates,
            'anchor': wrapper.anchor,
            'momentum': wrapper.momentum,
            'ratio_bounds': wrapper.ratio_bounds,
            'clip_window': wrapper.clip_window,
            'multipliers': agvm.modulator and agvm.modulator.multipliers,
            'images of a micro-batch': batch.images_per_rank,
            'micro-batches of an update': batch.micro_batches,
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
        if measurement is not None and measurement.accepted:
            self._rejected_in_a_row = 0
            self._for_next_line = measurement
            self._log(runner, scalars_of(measurement))
        elif measurement is not None:
            self._rejected_in_a_row += 1
            self._report_rejected(runner, measurement)
        if self._for_next_line is not None and any(
            writes_line(hook, runner, batch_idx)
            for hook in runner.hooks
            if isinstance(hook, LoggerHook)
        ):
            runner.logger.info(describe_measurement(self._for_next_line))
            self._for_next_line = None

    def _log(self, runner: Runner, scalars: Mapping[str, float]) -> None:
        # Not as scalars of the training, which MMEngine repeats in each line of its
        # log until there are new ones.
        for name, value in scalars.items():
            runner.message_hub.update_scalar(name, value)
        runner.visualizer.add_scalars(
            scalars, step=runner.iter + 1, file_path=f'{runner.timestamp}.json'
        )

    def _report_rejected(self, runner: Runner, measurement: Measurement) -> None:
        wrapper = runner.optim_wrapper
        count, update = wrapper.agvm.num_skipped_measurements, measurement.update
        anchor = wrapper.anchor if self.act else None
        reason, advice = explain_rejected(measurement.variances, anchor)
        self._log(runner, {'agvm/rejected': count})
        runner.logger.warning(
            f'AGVM: skipped the measurement at update {update} ({count} so far): '
            f'{reason}'
        )
        if self._rejected_in_a_row == self.max_rejected:
            raise FloatingPointError(
                f'AGVM: {self.max_rejected} measurements in a row, up to update '
                f'{update}, could not be used: {reason}. {advice}; '
                'VarianceSyncHook(max_rejected=None) continues anyway'
            )


def writes_line(hook: LoggerHook, runner: Runner, batch_idx: int) -> bool:
    """Return whether a hook logs after an iteration, as LoggerHook decides."""
    loader = runner.train_dataloader
    return hook.every_n_inner_iters(batch_idx, hook.interval) or (
        hook.end_of_epoch(loader, batch_idx)
        and (not hook.ignore_last or len(loader) <= hook.interval)
    )


def scalars_of(measurement: Measurement) -> dict[str, float]:
    """Return the values of a measurement by their names in logs."""
    values = {f'agvm/phi_{name}': phi for name, phi in measurement.variances.items()}
    values |= {f'agvm/mu_{name}': mu for name, mu in measurement.multipliers.items()}
    return values | {
        f'agvm/noise_scale_{name}': scale
        for name, scale in measurement.noise_scales.items()
        if math.isfinite(scale)
    }


def describe_measurement(measurement: Measurement) -> str:
    """Describe Phi and mu of a measurement in one line."""
    text = f'AGVM at update {measurement.update}'
    both = dict(Phi=measurement.variances, mu=measurement.multipliers)
    for name, values in both.items():
        if values:
            parts = (f'{module} {value:.4g}' for module, value in values.items())
            text += f'  {name}: {", ".join(parts)}'
    return text


def explain_rejected(
    variances: Mapping[str, float], anchor: str | None
) -> tuple[str, str]:
    """Return why a measurement with such a Phi of modules was skipped, and advice.

    The anchor is None without AGVM.
    """
    bad = [name for name, phi in variances.items() if not math.isfinite(phi)]
    if not bad:
        return (
            f"the anchor '{anchor}' had no gradient",
            'Choose another anchor, or find out why no loss reaches this one',
        )
    finite = [name for name in variances if name not in bad]
    rest = f', but finite in {", ".join(finite)}' if finite else ''
    return (
        f'gradients are not finite in {", ".join(bad)}{rest}',
        'Lower the learning rate or lengthen the warm-up',
    )


def check_measures(schedule: MeasurementSchedule, updates: int) -> None:
    """Check that a run of so many updates measures one of them.

    Raises:
        ValueError: If it does not.
    """
    if not any(map(schedule.is_measured, range(updates))):
        raise ValueError(
            f'VarianceSyncHook: begin={schedule.begin}, end={schedule.end} and '
            f'interval={schedule.interval} measure none of the {updates} updates of '
            'the run, so AGVM would never act; lower begin (the default is the end of '
            'the warm-up) or interval, or train longer'
        )


def check_optim_wrapper(optim_wrapper: BaseOptimWrapper) -> None:
    """Check that an optimizer wrapper is one of AGVM.

    Raises:
        TypeError: If it is not.
    """
    check_one_optimizer('VarianceSyncHook', optim_wrapper)
    if isinstance(optim_wrapper, AGVMOptimWrapper):
        return
    hint = ''
    if isinstance(optim_wrapper, AmpOptimWrapper):
        hint = (
            '. The --amp flag of MMDetection and MMSegmentation overwrites the type: '
            "drop the flag and set type='AGVMAmpOptimWrapper', or use --amp of "
            "agvm_mm's tools/train.py"
        )
    raise TypeError(
        'VarianceSyncHook needs optim_wrapper=dict(type="AGVMOptimWrapper", ...) or '
        f'AGVMAmpOptimWrapper, got {type(optim_wrapper).__name__}{hint}'
    )


def check_saving(hooks: Sequence[Hook]) -> None:
    """Check that all ranks take part when the state of a sharded training is saved.

    Raises:
        TypeError: If a hook saves it from one rank.
    """
    saving = [hook for hook in hooks if isinstance(hook, CheckpointHook)]
    for hook in saving:
        if not isinstance(hook, AtomicCheckpointHook):
            raise TypeError(
                f'{type(hook).__name__} saves from rank 0 alone, but the state of the '
                'training is divided over the ranks; use '
                "default_hooks=dict(checkpoint=dict(type='AtomicCheckpointHook'))"
            )


def check_fully_sharded(runner: Runner) -> None:
    """Check that nothing in a run needs the whole parameters of the model.

    Raises:
        TypeError: If something does.
        ValueError: If some ranks may not run all of the model, as often as others.
    """
    wrapper, hooks = runner.optim_wrapper, runner.hooks
    optimizer = wrapper.optimizer
    fused = any(group.get('fused') for group in optimizer.param_groups)
    problems = {
        'FullyShardedModel: ZeroRedundancyOptimizer divides whole parameters; use its '
        'optimizer_type as type': isinstance(optimizer, ZeroRedundancyOptimizer),
        'FullyShardedModel: EMAHook copies the model as a whole; remove it, or use '
        'ZeroRedundancyOptimizer': any(isinstance(hook, EMAHook) for hook in hooks),
        'FullyShardedModel: SGD(fused=True) cannot step slices; remove fused': (
            fused and isinstance(optimizer, SGD)
        ),
        'FullyShardedModel: with norm_type=inf of clip_grad each rank takes the norm '
        'of its own slices for the log; use norm_type=2': math.isinf(
            float((wrapper.clip_grad_kwargs or {}).get('norm_type', 2))
        ),
    }
    for problem, found in problems.items():
        if found:
            raise TypeError(problem)
    if runner.cfg.get('find_unused_parameters'):
        raise ValueError(
            'FullyShardedModel: find_unused_parameters=True says that some ranks may '
            'not run all of the model, and then the others would wait for them; use '
            'ZeroRedundancyOptimizer, or remove it if all ranks do'
        )
    loop = runner.val_loop
    counts = all_gather_object(loop and len(loop.dataloader))
    if len(set(counts)) > 1:
        raise ValueError(
            f'FullyShardedModel: the ranks have {min(counts)} to {max(counts)} batches '
            'to validate, and some would wait for others; give them the same number by '
            'val_dataloader.sampler.round_up=True'
        )


def check_one_hook(count: int) -> None:
    """Check that a run has one hook of AGVM at most.

    Raises:
        ValueError: If there are several.
    """
    if count > 1:
        raise ValueError(
            f'there are {count} hooks VarianceSyncHook, and each would measure; keep '
            "one, in default_hooks=dict(agvm=dict(type='VarianceSyncHook', ...)) or in "
            'custom_hooks'
        )


def check_ranks_agree(fingerprint: Mapping[str, object]) -> None:
    """Check that all ranks have the same settings, given by their names.

    Raises:
        ValueError: If a rank has another value than rank 0.
    """
    everyone = all_gather_object(fingerprint)
    for rank, other in enumerate(everyone):
        for name, value in everyone[0].items():
            if other[name] != value:
                raise ValueError(
                    f'the ranks disagree on {name}: rank 0 has {value}, rank {rank} '
                    f'has {other[name]}; start all of them from the same config and '
                    'checkpoint'
                )
