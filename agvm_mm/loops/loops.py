"""Training loops that count optimizer updates on a total batch size."""

import math
import time
from typing import Any

from mmengine.dist import get_rank, get_world_size
from mmengine.registry import LOOPS, OPTIM_WRAPPERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from agvm_mm import engine
from agvm_mm.checkpoint.loading import check_resume
from agvm_mm.checkpoint.match import check_batch_size
from agvm_mm.loops.dataloader import UpdateDataLoader, UpdateWindow
from agvm_mm.loops.summary import describe_run
from agvm_mm.loops.update import WeightedOptimWrapper, seed_update
from agvm_mm.optim.agvm_wrapper import AGVMMixin
from agvm_mm.preflight import (
    check_accumulation,
    check_auto_scaling,
    check_one_optimizer,
)
from agvm_mm.validation import suggests_arguments

# In the message hub, which is part of a checkpoint.
IMAGES_OF_EPOCH = 'agvm_images_of_epoch'


def pop_resume_switch(settings: object) -> bool:
    """Remove ``allow_resume_mismatch`` from the config of a plain optimizer wrapper.

    AGVM's wrappers take it as an argument, MMEngine's do not know it.

    Args:
        settings: ``optim_wrapper`` of the config, changed in place; or the optimizer
            wrapper itself.

    Returns:
        The value; False if it is not set or belongs to a wrapper of AGVM.
    """
    if not isinstance(settings, dict):
        return False
    kind = settings.get('type')
    if isinstance(kind, str):
        kind = OPTIM_WRAPPERS.get(kind)
    if isinstance(kind, type) and issubclass(kind, AGVMMixin):
        return False
    return settings.pop('allow_resume_mismatch', False)


class LargeBatchMixin:
    """Mixin for loops: one iteration is one optimizer update on a total batch.

    Args:
        runner: The runner.
        dataloader: Yields the micro-batches, or its config.
        total_batch_size: Images of one update over all ranks.
        kwargs: Arguments of MMEngine's loop.

    Attributes:
        batch: The batch size and how it is divided.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        *,
        total_batch_size: int,
        **kwargs: Any,
    ) -> None:
        check_resume(runner)
        self._allow_resume_mismatch = pop_resume_switch(runner.optim_wrapper)
        self._dataloader_cfg = dataloader
        self._total_batch_size = total_batch_size
        updates = self._build_dataloader(runner)
        self.batch = updates.batch
        super().__init__(runner, updates, **kwargs)

    def _build_dataloader(
        self, runner: Runner, dataset: Dataset | None = None
    ) -> UpdateDataLoader:
        dataloader = self._dataloader_cfg
        self._built_for_seed = runner.seed
        if isinstance(dataloader, dict):
            if dataset is not None:
                dataloader = dict(dataloader, dataset=dataset)
            # As MMEngine's BaseLoop builds it.
            dataloader = runner.build_dataloader(
                dataloader,
                seed=runner.seed,
                diff_rank_seed=engine.has_rank_seeds(runner),
            )
        return UpdateDataLoader(dataloader, self._total_batch_size)

    def run(self) -> nn.Module:
        """Launch training.

        Raises:
            ValueError: If the optimizer wrapper accumulates, MMEngine has scaled the
                learning rate to another batch, or the run resumes one of another batch
                size.
            TypeError: If there are several optimizer wrappers.
        """
        runner, name, total = self.runner, type(self).__name__, self.batch.total
        wrapper = runner.optim_wrapper
        check_one_optimizer(name, wrapper)
        check_accumulation(name, total, engine.accumulative_counts(wrapper))
        check_auto_scaling(runner.auto_scale_lr, total)
        is_agvm = isinstance(wrapper, AGVMMixin)
        if not is_agvm:
            wrapper.allow_resume_mismatch = self._allow_resume_mismatch
        check_batch_size(runner, total)
        if self.iter == 0:  # An earlier run of this process may have left images here.
            runner.message_hub.update_info(IMAGES_OF_EPOCH, 0)
        if runner.seed != self._built_for_seed:
            # Resumed: the order of the images follows the checkpoint's seed.
            self._replace_dataloader(
                self._build_dataloader(runner, self.dataloader.dataset)
            )
        if not is_agvm:
            # With AGVM, VarianceSyncHook prints it.
            runner.logger.info(describe_run(runner, self.batch))
        self._last_time = time.perf_counter()
        return super().run()

    def _replace_dataloader(self, dataloader: UpdateDataLoader) -> None:
        self.dataloader = dataloader

    def run_iter(self, *args: Any) -> None:
        """Run one optimizer update.

        Args:
            args: Index of the update in its epoch, in loops that count epochs, and its
                :class:`UpdateWindow`.
        """
        *index, window = args
        runner, batch_idx = self.runner, index[0] if index else self.iter
        seed_update(runner.seed + self._rank_offset, self.iter)
        micro_batches = iter(window)
        data_batch = next(micro_batches)
        runner.call_hook(
            'before_train_iter', batch_idx=batch_idx, data_batch=data_batch
        )
        outputs: dict = {}
        with engine.one_update(runner.optim_wrapper, len(window)):
            for weight in window.weights:
                losses = runner.model.train_step(
                    data_batch,
                    optim_wrapper=WeightedOptimWrapper(runner.optim_wrapper, weight),
                )
                for name, value in losses.items():
                    outputs[name] = outputs.get(name, 0) + value * float(weight)
                data_batch = next(micro_batches, data_batch)
        self._report(window)
        if index:
            self._count_images_of_epoch(index[0], window.images)
        runner.call_hook(
            'after_train_iter',
            batch_idx=batch_idx,
            data_batch=data_batch,
            outputs=outputs,
        )
        engine.count_iteration(self)

    @property
    def _rank_offset(self) -> int:
        # As in MMEngine's set_random_seed.
        return get_rank() if engine.has_rank_seeds(self.runner) else 0

    def _count_images_of_epoch(self, index: int, images: int) -> None:
        hub = self.runner.message_hub
        before = hub.runtime_info.get(IMAGES_OF_EPOCH, 0) if index else 0
        hub.update_info(IMAGES_OF_EPOCH, before + images * get_world_size())

    def _report(self, window: UpdateWindow) -> None:
        """Add an update's size and speed to the log, without waiting for a device."""
        images = window.images * get_world_size()
        now = time.perf_counter()
        seconds, self._last_time = now - self._last_time, now
        hub = self.runner.message_hub
        hub.update_scalar('train/batch_size', images)
        hub.update_scalar('train/micro_batches', len(window))
        hub.update_scalar('train/images_per_second', images / seconds)


@LOOPS.register_module()
@suggests_arguments()
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
        """Run the updates of one epoch that a resumed run has not done yet.

        The images of the updates before are loaded again and dropped, so that random
        augmentations in the workers continue as without an interruption.
        """
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        hub = self.runner.message_hub
        # In images: a run that resumes one of another batch has other updates.
        images = hub.runtime_info.get(IMAGES_OF_EPOCH, 0)
        done = math.ceil(images / self._total_batch_size)
        for idx, window in enumerate(self.dataloader):
            if idx >= done:
                self.run_iter(idx, window)
        # Before the hooks, one of which saves the checkpoint of a whole epoch.
        hub.update_info(IMAGES_OF_EPOCH, 0)
        self.runner.call_hook('after_train_epoch')
        engine.count_epoch(self)


@LOOPS.register_module()
@suggests_arguments()
class LargeBatchIterTrainLoop(LargeBatchMixin, IterBasedTrainLoop):
    """Training by iterations, each an update on ``total_batch_size`` images.

    Args:
        runner: The runner.
        dataloader: Yields the micro-batches, or its config.
        total_batch_size: Images of one update over all ranks.

    Keyword Args:
        max_iters (int): Updates of training. Other arguments are those of MMEngine's
            ``IterBasedTrainLoop``.

    Raises:
        ValueError: If the total is not a multiple of ranks x images per rank.
    """

    def _replace_dataloader(self, dataloader: UpdateDataLoader) -> None:
        super()._replace_dataloader(dataloader)
        self.dataloader_iterator = type(self.dataloader_iterator)(dataloader)
