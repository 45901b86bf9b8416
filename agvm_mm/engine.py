"""All private attributes of MMEngine that this package uses.

MMEngine has no public way to do this. Nothing else in this package uses a
private name of MMEngine, or overrides one but those listed in
``tests/test_engine.py``, which checks that, and names the attribute that a new release
of MMEngine drops.
"""

from copy import copy

from mmengine.dataset import InfiniteSampler
from mmengine.hooks import CheckpointHook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.optim import _ParamScheduler as ParamScheduler
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from torch.utils.data import DataLoader, Sampler

__all__ = ['ParamScheduler']


def accumulative_counts(optim_wrapper: OptimWrapper) -> int:
    """Return the number of micro-batches that a wrapper accumulates for one update."""
    return optim_wrapper._accumulative_counts


def backward_passes_left(optim_wrapper: OptimWrapper) -> int:
    """Return the number of backward passes until the next step.

    MMEngine accumulates ``accumulative_counts`` of them. There are fewer at the end of
    the training, and after resuming in the middle of an update.
    """
    counts, done = optim_wrapper._accumulative_counts, optim_wrapper._inner_count
    left = counts - done % counts
    if optim_wrapper._max_counts < 0:
        return left
    return min(left, optim_wrapper._max_counts - done)


def is_between_updates(optim_wrapper: OptimWrapper | OptimWrapperDict) -> bool:
    """Return whether the optimizers have stepped on all gradients so far."""
    several = isinstance(optim_wrapper, OptimWrapperDict)
    return not any(
        wrapper._inner_count % wrapper._accumulative_counts
        for wrapper in (optim_wrapper.values() if several else [optim_wrapper])
    )


class StepsOfDDP:
    """Mixin that gives a model wrapper the steps of ``MMDistributedDataParallel``."""

    train_step = MMDistributedDataParallel.train_step
    val_step = MMDistributedDataParallel.val_step
    test_step = MMDistributedDataParallel.test_step
    _run_forward = MMDistributedDataParallel._run_forward
    detect_anomalous_params = False


class ConditionalClipping:
    """Mixin for optimizer wrappers that clip gradients at some updates only."""

    def clips_now(self) -> bool:
        """Return whether ``clip_grad`` acts at this update."""
        return True

    def _clip_grad(self) -> None:
        if self.clips_now():
            super()._clip_grad()
        else:  # MMEngine would repeat the last norm in each line of its log.
            self.message_hub.log_scalars.pop(f'train/{self.grad_name}', None)


def checkpoint_to_resume(runner: Runner) -> str | None:
    """Return the checkpoint that a runner is to resume, or None for the latest."""
    return runner._load_from


def is_resuming(runner: Runner) -> bool:
    """Return whether a runner is about to resume a checkpoint."""
    return runner._resume and not runner._has_loaded


def has_rank_seeds(runner: Runner) -> bool:
    """Return whether each rank has its own seed (``diff_rank_seed``)."""
    return runner._randomness_cfg.get('diff_rank_seed', False)


def auto_scaling(runner: Runner) -> dict | None:
    """Return ``auto_scale_lr`` of a Runner or FlexibleRunner."""
    if hasattr(runner, 'auto_scale_lr'):
        return runner.auto_scale_lr
    return runner._auto_scale_lr


def build_train_dataloader(runner: Runner) -> DataLoader | None:
    """Build the dataloader of the training as its loop would do later.

    MMEngine's iteration-based loop starts the workers as soon as it has built it.
    Return None if the config asks for no workers.
    """
    settings = runner._train_dataloader
    if isinstance(settings, dict):
        if not settings.get('num_workers'):
            return None
        runner._train_dataloader = runner.build_dataloader(
            settings, seed=runner.seed, diff_rank_seed=has_rank_seeds(runner)
        )
    return runner._train_dataloader


def is_endless(batch_sampler: Sampler) -> bool:
    """Return whether a batch sampler never ends.

    MMEngine's InfiniteSampler and MMDetection's samplers of several sources share a
    private method.
    """
    samplers = (batch_sampler, getattr(batch_sampler, 'sampler', None))
    return any(hasattr(sampler, '_infinite_indices') for sampler in samplers)


def rewind(batch_sampler: Sampler) -> None:
    """Let MMEngine's InfiniteSampler begin again.

    It keeps one iterator, which is used up when an interrupted training is.
    """
    sampler = getattr(batch_sampler, 'sampler', batch_sampler)
    if isinstance(sampler, InfiniteSampler):
        sampler.indices = sampler._indices_of_rank()


def count_iteration(loop: BaseLoop) -> None:
    """Add one to the iterations of a training loop."""
    loop._iter += 1


def count_epoch(loop: BaseLoop) -> None:
    """Add one to the epochs of a training loop."""
    loop._epoch += 1


def save_extra(
    hook: CheckpointHook, runner: Runner, template: str, step: int, meta: dict
) -> str:
    """Save a checkpoint like a hook, which does not count it as its own.

    It is complete, whatever parts the hook leaves out. The template of its name has
    ``{}`` for the step. Return its path.
    """
    hook = copy(hook)
    hook.filename_tmpl, hook.max_keep_ckpts = template, -1
    hook.save_optimizer = hook.save_param_scheduler = True
    hook._save_checkpoint_with_step(runner, step, meta)
    return hook.last_ckpt
