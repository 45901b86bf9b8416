"""Training loops that count optimizer updates on a total batch size."""

import time
from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from agvm_mm import engine
from agvm_mm.estimators import check_accumulation
from agvm_mm.optim.agvm import check_trains_no_others, trainable
from agvm_mm.optim.precision import check_fused_momentum
from agvm_mm.optim.wrapper import AGVMOptimWrapper, check_one_optimizer
from agvm_mm.sharding.state import check_has_ranks
from agvm_mm.training.batch import check_update_settings
from agvm_mm.training.dataloader import (
    PLACE,
    EndlessUpdates,
    build_update_dataloader,
    has_uneven_ranks,
    set_seed,
)
from agvm_mm.training.evaluation import check_evaluator
from agvm_mm.training.normalizers import Normalizers
from agvm_mm.training.resume import resume_hook
from agvm_mm.training.summary import describe_run
from agvm_mm.training.update import Update, reset_update, seed_update
from agvm_mm.training.warmup import check_counts_iterations
from agvm_mm.validation import check_optimizer_type, suggests_arguments

# In the message hub, which is part of a checkpoint.
SAMPLER_SEEDS = 'agvm_sampler_seeds'
ITERATIONS_ADVICE = (
    "For a training that counts iterations use type='LargeBatchIterTrainLoop' with "
    'max_iters in optimizer updates.'
)
ADVICE = dict(
    max_iters=ITERATIONS_ADVICE,
    max_epochs="For a training that counts epochs use type='LargeBatchTrainLoop'; "
    'train_cfg=dict(_delete_=True, ...) drops max_epochs of the base config.',
)
"""What to do about an argument that belongs to the other kind of loop."""


class LargeBatchMixin:
    """Mixin for loops: one iteration is one optimizer update on a total batch.

    Its arguments are those of :class:`LargeBatchTrainLoop`.

    Attributes:
        batch: The batch size and how it is divided.
        normalizers: What the losses of each update are divided by.
    """

    counts_epochs = True
    """Whether the loop needs a sampler that ends."""

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        *,
        total_batch_size: int,
        normalizers: str = 'micro_batch',
        allow_resume_mismatch: bool = False,
        **kwargs: Any,
    ) -> None:
        self.normalizers = Normalizers(normalizers)
        if isinstance(runner.optim_wrapper, dict):
            settings = runner.optim_wrapper.get('optimizer')
            check_optimizer_type(settings)
            check_has_ranks(settings)
        resume_hook(runner, allow_mismatch=allow_resume_mismatch, compares=True)
        self._is_prepared = False
        # DDP reduces these only. FlexibleRunner has no model yet.
        self._reduced: set[int] = set()
        if isinstance(runner.model, nn.Module):
            self._reduced = set(trainable(runner.model.parameters()))
        if isinstance(dataloader, dict):
            # As MMEngine's BaseLoop builds it.
            dataloader = runner.build_dataloader(
                dataloader,
                seed=runner.seed,
                diff_rank_seed=engine.has_rank_seeds(runner),
            )
        updates = build_update_dataloader(dataloader, total_batch_size, runner.seed)
        if self.counts_epochs:
            sampler = type(updates.plan.sampler)
            check_ends(type(self).__name__, sampler, updates.endless)
        self.batch = updates.batch
        super().__init__(runner, updates, **kwargs)

    def run(self) -> nn.Module:
        """Launch training.

        Raises:
            ValueError: If the optimizer wrapper accumulates, MMEngine has scaled the
                learning rate to another batch, the run resumes one of another batch
                size, or the loop accumulates and DDP cannot.
            TypeError: If there are several optimizer wrappers.
        """
        self._prepare()
        return super().run()

    def _prepare(self) -> None:
        """Check the run before its first update, and start it clean."""
        runner, name, total = self.runner, type(self).__name__, self.batch.total
        self._reduced = self._reduced or set(trainable(runner.model.parameters()))
        wrapper = runner.optim_wrapper
        check_one_optimizer(name, wrapper)
        check_fused_momentum(wrapper)
        kind = type(wrapper)
        if kind.update_params is not OptimWrapper.update_params:
            raise TypeError(
                f'{name} calls backward and step of the optimizer wrapper itself, but '
                f'{kind.__name__} overrides update_params; use a loop of MMEngine with '
                'optim_wrapper.accumulative_counts'
            )
        counts = engine.accumulative_counts(wrapper)
        check_update_settings(name, total, counts, engine.auto_scaling(runner))
        check_accumulation(runner.model, self.batch.micro_batches)
        if not self.counts_epochs:
            check_counts_iterations(name, runner.param_schedulers or [], runner.hooks)
        hub = runner.message_hub
        if self.iter == 0:  # An earlier run of this process may have left its place.
            hub.pop_info(PLACE)
        self._uneven = has_uneven_ranks(self.dataloader)
        # An interrupted update of this process may have left gradients.
        reset_update(runner.model, wrapper)
        self.normalizers.prepare(runner)
        # A resumed run has the seeds of its checkpoint.
        saved = hub.runtime_info.get(SAMPLER_SEEDS) if self.iter else None
        hub.update_info(SAMPLER_SEEDS, set_seed(self.dataloader, runner.seed, saved))
        if not isinstance(wrapper, AGVMOptimWrapper):
            # Otherwise VarianceSyncHook does both.
            check_evaluator(runner)
            runner.logger.info(describe_run(runner, self.batch))
        self._is_prepared = True

    def run_iter(self, *args: Any) -> None:
        """Run one optimizer update.

        Args:
            args: Index of the update in its epoch, in loops that count epochs, and its
                :class:`UpdateWindow`.
        """
        *index, window = args
        if not self._is_prepared:  # A subclass has its own `run`.
            self._prepare()
        runner, batch_idx = self.runner, index[0] if index else self.iter
        seed_update(runner.seed, get_rank(), self.iter)
        images = [window.images] * get_world_size()
        if self._uneven:
            images = all_gather_object(window.images)
        update = Update(
            runner.model,
            runner.optim_wrapper,
            window.sizes,
            sum(images),
            even=len(set(images)) == 1,
        )
        runner.call_hook('before_train_iter', batch_idx=batch_idx, data_batch=window)
        if is_model_wrapper(runner.model):
            check_trains_no_others(runner.optim_wrapper.optimizer, self._reduced)
        waited = 0.0
        with self.normalizers.of_update(runner, window) as micro_batches:
            for _ in window.sizes:
                start = time.perf_counter()
                data_batch = next(micro_batches)
                waited += time.perf_counter() - start
                update.train_step(data_batch)
        outputs = update.finish(self.normalizers.correction)
        self._report(sum(images), waited)
        self.dataloader.plan.count_update(runner.message_hub, sum(images))
        runner.call_hook(
            'after_train_iter',
            batch_idx=batch_idx,
            data_batch=window,
            outputs=outputs,
        )
        engine.count_iteration(self)

    def _report(self, images: int, waited: float) -> None:
        """Add an update's size, the speed so far and the time of loading to the log."""
        hub = self.runner.message_hub
        if 'train/data_time' in hub.log_scalars:
            # IterTimerHook has seen none of the micro-batches.
            values, _ = hub.get_scalar('train/data_time').data
            values[-1] += waited
        recent = [
            hub.get_scalar(name).mean(self.runner.log_processor.window_size)
            for name in ('train/batch_size', 'train/time')
            if name in hub.log_scalars
        ]
        if len(recent) == 2:
            # Of the updates before: IterTimerHook has no time of this one yet.
            hub.update_scalar('train/images_per_second', recent[0] / recent[1])
        hub.update_scalar('train/batch_size', images)


def check_ends(loop: str, sampler: type, endless: bool) -> None:
    """Raise a ValueError if the sampler of a loop that counts epochs never ends one."""
    if endless:
        raise ValueError(
            f'{loop} counts epochs, but {sampler.__name__} never ends one. '
            f'{ITERATIONS_ADVICE}'
        )


@LOOPS.register_module()
@suggests_arguments(advice=ADVICE)
class LargeBatchTrainLoop(LargeBatchMixin, EpochBasedTrainLoop):
    """Epoch-based training whose iterations are updates on ``total_batch_size``.

    Each update runs total / (ranks x images per rank) micro-batches and reduces
    gradients over the ranks once. ``runner.iter``, schedules, logs and checkpoints
    count updates. The last update of an epoch may have fewer images; it follows the
    mean over those.

    Args:
        runner: The runner.
        dataloader: Yields the micro-batches, or its config.
        total_batch_size: Images of one update over all ranks.
        normalizers: What losses are divided by: the counts of a 'micro_batch', their
            'average' over earlier updates, or those of the whole 'update'. Defaults
            to 'micro_batch'.
        allow_resume_mismatch: Whether to resume a checkpoint of another batch size, or
            without the state of the optimizer or its schedules, instead of raising.
            Defaults to False.

    Keyword Args:
        max_epochs (int): Epochs of training. Other arguments are those of MMEngine's
            ``EpochBasedTrainLoop``.

    Raises:
        ValueError: If the total is not a multiple of ranks x images per rank.

    Example:
        >>> train_cfg = dict(
        ...     type='LargeBatchTrainLoop', max_epochs=16, total_batch_size=256
        ... )
    """

    def run_epoch(self) -> None:
        """Run the updates of one epoch that a resumed run has not done yet."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        hub, plan = self.runner.message_hub, self.dataloader.plan
        plan.start_at(hub, self.epoch)
        for idx, window in enumerate(self.dataloader, start=plan.done):
            # No batch sampler is so far off its length.
            endless, sampler = idx > 2 * len(self.dataloader), type(plan.sampler)
            check_ends(type(self).__name__, sampler, endless)
            self.run_iter(idx, window)
        # Before the hooks, one of which saves the checkpoint of a whole epoch.
        plan.end_pass(hub)
        self.runner.call_hook('after_train_epoch')
        engine.count_epoch(self)


@LOOPS.register_module()
@suggests_arguments(advice=ADVICE)
class LargeBatchIterTrainLoop(LargeBatchMixin, IterBasedTrainLoop):
    """Training by iterations, each an update on ``total_batch_size`` images.

    Its arguments and errors are those of :class:`LargeBatchTrainLoop`, but for
    ``max_iters`` in place of ``max_epochs``: the updates of the training.
    """

    counts_epochs = False

    def run(self) -> nn.Module:
        """Launch training; see :meth:`LargeBatchMixin.run`."""
        hub = self.runner.message_hub
        self.dataloader_iterator = EndlessUpdates(self.dataloader, self.iter, hub)
        return super().run()
