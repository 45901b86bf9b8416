"""Training loops that count optimizer updates on a total batch size."""

import itertools
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank, get_world_size
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader

from agvm_mm.loops.batch_size import images_per_rank
from agvm_mm.checkpoint.loading import prepare_resume
from agvm_mm.validation import check_number, suggests_arguments
from agvm_mm.optim.agvm_wrapper import AGVMMixin
from agvm_mm.loops.summary import describe_run

# What a checkpoint holds of these loops, in the message hub.
TOTAL_BATCH_SIZE = 'agvm_total_batch_size'
IMAGES_OF_EPOCH = 'agvm_images_of_epoch'


class UpdateWindow:
    """The micro-batches of one optimizer update on this rank, loaded one by one.

    Args:
        batches (Iterator): Where the micro-batches come from.
        sizes (Sequence[int]): Images of each micro-batch.
    """

    def __init__(self, batches: Iterator, sizes: Sequence[int]) -> None:
        self._batches = batches
        self.sizes = tuple(sizes)
        self._taken = 0

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator:
        while self._taken < len(self.sizes):
            self._taken += 1
            yield next(self._batches)

    def skip(self) -> None:
        """Pass over the micro-batches that nobody took."""
        for _ in self:
            pass


class UpdateDataLoader:
    """Presents a dataloader in windows of one optimizer update each.

    Its length counts updates, so that schedules, logs and checkpoints do. All other
    attributes are those of the dataloader.

    Args:
        dataloader (DataLoader): Yields the micro-batches of this rank.
        total_batch_size (int): Images of one update over all ranks.

    Attributes:
        micro_batches (int): Micro-batches of one full update on each rank.

    Raises:
        ValueError: If the total is no multiple of ranks x images per rank.
    """

    def __init__(self, dataloader: DataLoader, total_batch_size: int) -> None:
        check_number('total_batch_size', total_batch_size, low=1, integer=True)
        self.dataloader = dataloader
        self.total_batch_size = total_batch_size
        self.micro_batch_size = images_per_rank(dataloader)
        ranks = get_world_size()
        unit = ranks * self.micro_batch_size
        self.micro_batches, rest = divmod(total_batch_size, unit)
        if rest:
            nearest = [n * unit for n in (self.micro_batches, self.micro_batches + 1)]
            raise ValueError(
                f'total_batch_size={total_batch_size} is not a multiple of {ranks} '
                f'rank(s) x {self.micro_batch_size} images per rank = {unit}; the '
                f'nearest that are: {" and ".join(str(n) for n in nearest if n)}. Or '
                'change train_dataloader.batch_size'
            )

    def __getattr__(self, name: str):
        if name == 'dataloader':  # Not there yet while being unpickled.
            raise AttributeError(name)
        return getattr(self.dataloader, name)

    def __len__(self) -> int:
        if self._is_infinite:
            return math.ceil(len(self.dataloader.dataset) / self.total_batch_size)
        return math.ceil(len(self.dataloader) / self.micro_batches)

    def __iter__(self) -> Iterator[UpdateWindow]:
        batches = iter(self.dataloader)
        for sizes in self._window_sizes():
            window = UpdateWindow(batches, sizes)
            yield window
            window.skip()

    @property
    def _is_infinite(self) -> bool:
        return isinstance(self._sampler, InfiniteSampler)

    @property
    def _sampler(self):
        # A batch sampler of one's own wraps the sampler that knows the length.
        return getattr(
            self.dataloader.batch_sampler, 'sampler', self.dataloader.sampler
        )

    def _window_sizes(self) -> Iterator[list[int]]:
        full = [self.micro_batch_size] * self.micro_batches
        if self._is_infinite:
            yield from itertools.repeat(full)
            return
        sizes = [self.micro_batch_size] * len(self.dataloader)
        # Only the last micro-batch of an epoch can be smaller, and is not if the
        # dataloader drops it.
        missing = len(sizes) * self.micro_batch_size - len(self._sampler)
        if missing > 0:
            sizes[-1] -= missing
        for start in range(0, len(sizes), self.micro_batches):
            yield sizes[start : start + self.micro_batches]


def refuse_accumulation(loop: str, total_batch_size: int, counts: int) -> None:
    """Refuse an optimizer wrapper that accumulates beside a large-batch loop.

    Args:
        loop (str): Name of the loop.
        total_batch_size (int): Images of an update.
        counts (int): accumulative_counts of the optimizer wrapper.

    Raises:
        ValueError: If it accumulates.
    """
    if counts != 1:
        raise ValueError(
            f'{loop} accumulates by itself up to total_batch_size={total_batch_size}; '
            f'leave out optim_wrapper.accumulative_counts={counts}'
        )


def refuse_auto_scaling(settings: Mapping | None, total_batch_size: int) -> None:
    """Refuse MMEngine's own scaling of the learning rate, which counts other images.

    Args:
        settings (Mapping, optional): ``auto_scale_lr`` of the config.
        total_batch_size (int): Images of an update.

    Raises:
        ValueError: If it is on.
    """
    if settings and settings.get('enable'):
        raise ValueError(
            'auto_scale_lr.enable scales the learning rate to ranks x images per rank '
            f'and does not know total_batch_size={total_batch_size}: leave it False '
            "and use agvm_mm's tools/train.py --auto-scale-lr, or set the learning "
            'rate of that batch'
        )


@contextmanager
def accumulating(optim_wrapper: OptimWrapper, micro_batches: int) -> Iterator[None]:
    """Make an OptimWrapper take its next micro-batches as one update.

    MMEngine fixes the number of accumulated micro-batches for a whole training and
    counts them on through epochs; here each update has its own number. Works for
    every subclass: they share these counters.
    """
    optim_wrapper._accumulative_counts = micro_batches
    optim_wrapper._inner_count = 0
    optim_wrapper._max_counts = -1
    try:
        yield
    finally:
        optim_wrapper._accumulative_counts = 1
        vars(optim_wrapper).pop('scale_loss', None)


def seed_update(seed: int, update: int) -> None:
    """Make the random numbers of an update a function of its number.

    A run that is resumed before an update draws the same ones as a run that never
    stopped, whatever was drawn before.

    Args:
        seed (int): The run's seed.
        update (int): The update's number, from 0.
    """
    (seed,) = np.random.SeedSequence([seed, update]).generate_state(1).tolist()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class LargeBatchMixin:
    """One iteration of the loop is one optimizer update on ``total_batch_size``."""

    def __init__(self, runner, dataloader, *, total_batch_size: int, **kwargs) -> None:
        prepare_resume(runner)
        self._dataloader_cfg = dataloader
        self._total_batch_size = total_batch_size
        super().__init__(runner, self._build_dataloader(runner), **kwargs)

    def _build_dataloader(self, runner, dataset=None) -> UpdateDataLoader:
        dataloader = self._dataloader_cfg
        self._built_for_seed = runner.seed
        if isinstance(dataloader, dict):
            if dataset is not None:
                dataloader = dict(dataloader, dataset=dataset)
            # As MMEngine's BaseLoop builds it.
            dataloader = runner.build_dataloader(
                dataloader,
                seed=runner.seed,
                diff_rank_seed=runner._randomness_cfg.get('diff_rank_seed', False),
            )
        return UpdateDataLoader(dataloader, self._total_batch_size)

    def run(self):
        """Launch training.

        Raises:
            ValueError: If the optimizer wrapper accumulates by itself, MMEngine has
                scaled the learning rate to another batch, or the run resumes one of
                another batch size.
            TypeError: If there are several optimizer wrappers.
        """
        runner = self.runner
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapperDict):
            raise TypeError(
                f'{type(self).__name__} does not support OptimWrapperDict (several '
                'optimizers)'
            )
        refuse_accumulation(
            type(self).__name__, self._total_batch_size, wrapper._accumulative_counts
        )
        refuse_auto_scaling(runner.auto_scale_lr, self._total_batch_size)
        hub = runner.message_hub
        if self._iter == 0:  # What an earlier training of this process left there.
            hub.update_info(IMAGES_OF_EPOCH, 0)
        elif not isinstance(wrapper, AGVMMixin):
            # Where there is AGVM, VarianceSyncHook compares.
            self._refuse_another_batch_size()
        hub.update_info(TOTAL_BATCH_SIZE, self._total_batch_size)
        if runner.seed != self._built_for_seed:
            # Resumed: the order of the images is that of the checkpoint's seed.
            self._replace_dataloader(
                self._build_dataloader(runner, self.dataloader.dataset)
            )
        if not isinstance(wrapper, AGVMMixin):
            # VarianceSyncHook prints it together with what AGVM does.
            runner.logger.info(describe_run(runner))
        self._seen_at = time.perf_counter()
        return super().run()

    def _refuse_another_batch_size(self) -> None:
        saved = self.runner.message_hub.runtime_info.get(TOTAL_BATCH_SIZE)
        if saved not in (None, self._total_batch_size):
            raise ValueError(
                f'the checkpoint is of a training with total_batch_size={saved}, this '
                f'run has {self._total_batch_size}. Start from its weights with '
                'load_from instead of resuming it'
            )

    def _replace_dataloader(self, dataloader: UpdateDataLoader) -> None:
        self.dataloader = dataloader

    def run_iter(self, *args) -> None:
        """Run one optimizer update.

        Args:
            args: The update's index in its epoch, where epochs are counted, and its
                :class:`UpdateWindow`.
        """
        *index, window = args
        batch_idx = index[0] if index else self._iter
        wrapper = self.runner.optim_wrapper
        images = sum(window.sizes)
        seed_update(self.runner.seed + self._rank_offset, self._iter)
        micro_batches = iter(window)
        data_batch = next(micro_batches)
        self.runner.call_hook(
            'before_train_iter', batch_idx=batch_idx, data_batch=data_batch
        )
        outputs: dict = {}
        with accumulating(wrapper, len(window)):
            for size in window.sizes:
                # The update is to follow the mean over its images, and the last
                # micro-batch of an epoch may have fewer.
                factor = images / size
                wrapper.scale_loss = lambda loss, factor=factor: loss / factor
                losses = self.runner.model.train_step(data_batch, optim_wrapper=wrapper)
                for name, value in losses.items():
                    outputs[name] = outputs.get(name, 0) + value * (size / images)
                data_batch = next(micro_batches, data_batch)
        self._report(len(window), images)
        if index:
            self._count_images_of_epoch(index[0], images)
        self.runner.call_hook(
            'after_train_iter',
            batch_idx=batch_idx,
            data_batch=data_batch,
            outputs=outputs,
        )
        self._iter += 1

    @property
    def _rank_offset(self) -> int:
        # As MMEngine's set_random_seed has it.
        differ = self.runner._randomness_cfg.get('diff_rank_seed', False)
        return get_rank() if differ else 0

    def _count_images_of_epoch(self, index: int, images: int) -> None:
        hub = self.runner.message_hub
        before = hub.runtime_info.get(IMAGES_OF_EPOCH, 0) if index else 0
        hub.update_info(IMAGES_OF_EPOCH, before + images * get_world_size())

    def _report(self, micro_batches: int, images: int) -> None:
        """Tell the log line what an update was; nothing here waits for a device."""
        ranks = get_world_size()
        now = time.perf_counter()
        seconds, self._seen_at = now - self._seen_at, now
        hub = self.runner.message_hub
        hub.update_scalar('train/batch_size', images * ranks)
        hub.update_scalar('train/micro_batches', micro_batches)
        hub.update_scalar('train/images_per_second', images * ranks / seconds)


@LOOPS.register_module()
@suggests_arguments()
class LargeBatchTrainLoop(LargeBatchMixin, EpochBasedTrainLoop):
    """Epoch-based training whose iterations are updates on ``total_batch_size``.

    Each update runs total / (ranks x images per rank) micro-batches and reduces
    gradients over the ranks once. ``runner.iter``, schedules, logs and checkpoints
    count updates. The last update of an epoch may see fewer images; it follows the
    mean over those.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader or dict): Yields the micro-batches.
        total_batch_size (int): Images of one update over all ranks.
        max_epochs (int): Epochs of training; further arguments as in MMEngine's
            ``EpochBasedTrainLoop``.

    Raises:
        ValueError: If the total is no multiple of ranks x images per rank.

    Example:
        >>> train_cfg = dict(
        ...     type='LargeBatchTrainLoop', max_epochs=16, total_batch_size=256
        ... )
    """

    def run_epoch(self) -> None:
        """Run the updates of one epoch, from where a resumed one had stopped.

        What it had seen of the epoch is loaded again and passed over, so that random
        augmentations in the workers go on as they would have.
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
        # Before the hooks, one of which saves a checkpoint of a whole epoch.
        hub.update_info(IMAGES_OF_EPOCH, 0)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
@suggests_arguments()
class LargeBatchIterTrainLoop(LargeBatchMixin, IterBasedTrainLoop):
    """Training by iterations, each an update on ``total_batch_size`` images.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader or dict): Yields the micro-batches.
        total_batch_size (int): Images of one update over all ranks.
        max_iters (int): Updates of training; further arguments as in MMEngine's
            ``IterBasedTrainLoop``.

    Raises:
        ValueError: If the total is no multiple of ranks x images per rank.
    """

    def _replace_dataloader(self, dataloader: UpdateDataLoader) -> None:
        super()._replace_dataloader(dataloader)
        self.dataloader_iterator = type(self.dataloader_iterator)(dataloader)
